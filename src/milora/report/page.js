// Copies code, and filters the samples. Without it, the first samples are there to read, and everything else.
for (const button of document.querySelectorAll('.copy')) {
  button.hidden = !navigator.clipboard
  button.onclick = async () => {
    await navigator.clipboard.writeText(button.nextElementSibling.textContent)
    button.textContent = 'Copied'
  }
}

const shown = document.querySelector('#shown')
if (shown) {
  const STEP = 10, LONGEST = 500 // samples at a time; words of an answer in which differences are looked for
  const find = name => document.querySelector(`#samples [name=${name}]`)
  const signs = { '&': '&amp;', '<': '&lt;', '>': '&gt;', "'": '&#39;', '"': '&#34;' } // as the page has them
  const escape = text => text.replace(/[&<>'"]/g, sign => signs[sign])
  // Samples stay text until they are shown: to parse thousands of them would take seconds.
  const rest = document.querySelector('#rest').textContent.match(/<article [^]*?<\/article>/g) ?? []
  const samples = [...shown.children].map(node => ({
    node, task: escape(node.dataset.task), verdicts: node.dataset.verdicts, text: escape(node.textContent.toLowerCase()),
  })).concat(rest.map(html => {
    const [, task, verdicts] = /data-task="([^"]*)" data-verdicts="([^"]*)"/.exec(html)
    return { html, task, verdicts }
  }))
  const parser = document.createElement('template')
  const nodeOf = sample => sample.node ??= (parser.innerHTML = sample.html, parser.content.firstElementChild)
  const textOf = sample => sample.text ??= sample.html.replace(/<[^>]*>/g, '').toLowerCase()
  const [task, search, first, second] = ['task', 'search', 'first', 'second'].map(find)
  const buttons = [...document.querySelectorAll('#samples [data-wanted]')]
  const more = document.querySelector('#samples .more'), status = document.querySelector('#samples [role=status]')
  const pictures = JSON.parse(document.querySelector('#pictures')?.textContent ?? '{}') // each once, by its file
  let wanted = '', limit = STEP

  const places = () => [first, second].map((select, place) => select ? +select.value : place)
  const verdicts = sample => places().map(place => sample.verdicts[place] ?? '-').join('')

  function update() {
    const text = escape(search.value.toLowerCase())
    const candidates = samples.filter(sample =>
      (!task?.value || sample.task === escape(task.value)) && (!text || textOf(sample).includes(text)))
    const found = candidates.filter(sample => !wanted || verdicts(sample) === wanted)
    shown.replaceChildren(...found.slice(0, limit).map(nodeOf))
    shown.childNodes.forEach(compare)
    for (const button of buttons) {
      const count = candidates.filter(sample => !button.dataset.wanted || verdicts(sample) === button.dataset.wanted)
      button.querySelector('span').textContent = count.length.toLocaleString('en')
      button.setAttribute('aria-pressed', button.dataset.wanted === wanted)
    }
    const rest = found.length - Math.min(limit, found.length)
    status.textContent = `${Math.min(limit, found.length).toLocaleString('en')} of ${found.length.toLocaleString('en')} samples shown`
    more.hidden = !rest
    more.textContent = `Show ${Math.min(STEP, rest)} more`
  }

  // Shows the two answers that are compared, and marks the words that only one of them has.
  function compare(sample) {
    for (const picture of sample.querySelectorAll('[data-picture]')) picture.src = pictures[picture.dataset.picture]
    const answers = [...sample.querySelectorAll('.answer')], chosen = places()
    answers.forEach((answer, place) => { answer.hidden = !chosen.includes(place) })
    const [one, other] = chosen.map(place => answers[place]?.querySelector('.said'))
    if (!one || !other || one === other) return
    for (const said of [one, other]) said.textContent = said.textContent
    const texts = [one, other].map(said => said.textContent.split(/(?<=\s)(?=\S)/))
    if (Math.max(...texts.map(words => words.length)) > LONGEST) return
    const found = differences(...texts)
    if (found[0].size === texts[0].length || found[0].size + found[1].size > 0.8 * (texts[0].length + texts[1].length)) return
    found.forEach((alone, place) => [one, other][place].replaceChildren(...mark(texts[place], alone)))
  }

  // Words as text, and runs of marked ones as elements; the space after a run is not marked.
  function mark(words, alone) {
    const pieces = []
    words.forEach((word, index) => {
      const marked = alone.has(index), space = marked && !alone.has(index + 1) ? word.length - word.trimEnd().length : 0
      const text = word.slice(0, word.length - space)
      if (marked && alone.has(index - 1)) pieces.at(-1).textContent += text
      else if (marked) pieces.push(Object.assign(document.createElement('mark'), { textContent: text }))
      else pieces.push(text)
      if (space) pieces.push(word.slice(-space))
    })
    return pieces
  }

  // The places of the words that are not in the longest common subsequence of two texts.
  function differences(one, other) {
    const [a, b] = [one, other].map(words => words.map(word => word.trim())), width = b.length + 1
    const length = new Uint16Array((a.length + 1) * width)
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        length[i * width + j] = a[i] === b[j] ? length[(i + 1) * width + j + 1] + 1
          : Math.max(length[(i + 1) * width + j], length[i * width + j + 1])
    const alone = [new Set(a.keys()), new Set(b.keys())]
    for (let i = 0, j = 0; i < a.length && j < b.length;)
      if (a[i] === b[j]) { alone[0].delete(i++); alone[1].delete(j++) }
      else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) i++
      else j++
    return alone
  }

  const restart = () => { limit = STEP; update() }
  for (const control of [task, first, second]) if (control) control.onchange = restart
  search.oninput = restart
  for (const button of buttons) button.onclick = () => { wanted = button.dataset.wanted; restart() }
  more.onclick = () => {
    const last = limit
    limit += STEP
    update()
    shown.children[last]?.focus() // a keyboard goes on where it was
  }
  document.querySelector('#samples .controls').hidden = false
  update()
}
