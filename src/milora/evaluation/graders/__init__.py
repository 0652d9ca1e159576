"""What a completion answers, and whether that is right: by the paper's graders, and by right ones."""
