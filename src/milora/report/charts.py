"""Charts as SVG, drawn once and written twice: fluid inside a page, and of a fixed size as a file.

In a page, places are percentages and text keeps its size at every width; colors are the variables of style.css, so
that a chart is light, dark, or printed with its page. A file has numbers and the light colors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from milora.report.scales import Axis

# style.css has the same colors as --s1 … --s8, and lighter ones for dark pages.
COLORS = ("#0b62a8", "#bf4a17", "#00795a", "#94478a", "#8a6100", "#167a8c", "#39434d", "#7d5fc0")
BASE = "#6b7782"
INK, FAINT, LINE = "#1b2530", "#54616d", "#d9dfe5"
SHAPES = (
    '<circle r="4.5"/>',
    '<path d="M-4.2-4.2h8.4v8.4h-8.4z"/>',
    '<path d="M0-5.6 5.2 4h-10.4z"/>',
    '<path d="M0-5.8 5.8 0 0 5.8-5.8 0z"/>',
    '<path d="M0 5.6 5.2-4h-10.4z"/>',
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 64, 20, 20, 52  # of a file
CELLS = 1000  # a page's lines are drawn on a grid of so many cells, and stretched


@dataclass(frozen=True, slots=True)
class Mark:
    """A point: its interval, what it says when it is pointed at, and the page it leads to."""

    x: float
    y: float
    says: str = ""
    ends: tuple[float, float] | None = None
    href: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Marks of one color. `number` is its place among the colors and shapes; None is the base's gray."""

    name: str
    marks: Sequence[Mark]
    number: int | None = 0
    has_line: bool = True
    has_marks: bool = True
    is_dashed: bool = False
    is_faint: bool = False
    is_stepped: bool = False
    is_strong: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Series between two axes; `says` is what it shows, for those who cannot see it."""

    title: str
    says: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    note: str = ""
    bands: Sequence[tuple[float, float]] = ()  # shaded parts of the x axis

    @property
    def is_linked(self) -> bool:
        return any(mark.href for series in self.series for mark in series.marks)

    @property
    def named(self) -> list[Series]:
        """The series that a legend lists."""
        return [series for series in self.series if series.name]

    def to_page(self) -> str:
        """Return the chart for a page; marks with a page of their own are links."""
        role = "group" if self.is_linked else "img"  # what is inside an image cannot be reached
        body = _Drawing(self, None).draw()
        return f'<svg role="{role}" aria-label="{escape(f"{self.title}. {self.says}")}">{body}</svg>'

    def to_file(self) -> str:
        """Return the chart as a file of its own, with its title and legend."""
        rows = (len(self.named) + 2) // 3 if len(self.named) > 1 else 0
        top = TOP + 24 + 20 * rows
        size = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
        body = _Drawing(self, size).draw()
        title = f'<text x="0" y="{12 - top}" font-weight="600" font-size="15" fill="{INK}">{escape(self.title)}</text>'
        legend = "".join(_legend(series, index, size[0], top) for index, series in enumerate(self.named) if rows)
        height = HEIGHT + top - TOP
        content = f'<g transform="translate({LEFT},{top + 8})">{title}{legend}{body}</g>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'font-family="Helvetica, Arial, sans-serif" font-size="13"><title>{escape(self.title)}</title>'
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>{_resolve(content)}</svg>\n'
        )


def key_of(number: int | None) -> str:
    """Return the small picture beside a series' name in a legend."""
    return f'<svg viewBox="-8 -8 16 16" class="key {class_of(number)}" aria-hidden="true">{shape_of(number)}</svg>'


def class_of(number: int | None) -> str:
    return "base" if number is None else f"s{number % len(COLORS) + 1}"


def shape_of(number: int | None) -> str:
    """Shapes tell series apart in gray print; after the last color they move on, so that no two series are alike."""
    return SHAPES[0] if number is None else SHAPES[(number + number // len(COLORS)) % len(SHAPES)]


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A chart at one size in pixels; without one, at any size."""

    chart: Chart
    size: tuple[int, int] | None

    def draw(self) -> str:
        chart = self.chart
        bands = "".join(self._band(*band) for band in chart.bands)
        lines = "".join(self._line(series) for series in chart.series if series.has_line)
        marks = "".join(self._marks(series) for series in chart.series)
        return f"{bands}{self._axes()}{lines}{marks}"

    def _x(self, fraction: float) -> str:
        return f"{100 * fraction:.2f}%" if self.size is None else f"{self.size[0] * fraction:.1f}"

    def _y(self, fraction: float) -> str:
        return f"{100 * (1 - fraction):.2f}%" if self.size is None else f"{self.size[1] * (1 - fraction):.1f}"

    def _place(self, mark: Mark) -> tuple[float, float]:
        return self.chart.x.place(mark.x), self.chart.y.place(mark.y)

    def _axes(self) -> str:
        parts = []
        for value, label in self.chart.y.ticks:
            y = self._y(self.chart.y.place(value))
            parts.append(f'<line class="grid" x1="0" x2="{self._x(1)}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="tick" x="-8" y="{y}" dy=".32em" text-anchor="end">{label}</text>')
        bottom = self._y(0)
        parts.append(f'<line class="axis" x1="0" x2="{self._x(1)}" y1="{bottom}" y2="{bottom}"/>')
        for value, label in self.chart.x.ticks:
            x = self._x(self.chart.x.place(value))
            parts.append(f'<text class="tick" x="{x}" y="{bottom}" dy="1.5em" text-anchor="middle">{label}</text>')
        parts.append(
            f'<text class="name" x="{self._x(1)}" y="{bottom}" dy="2.9em" text-anchor="end">'
            f"{escape(self.chart.x.title)}</text>"
            f'<text class="name" x="0" y="{self._y(1)}" dy="-1.2em" dx="-3em">{escape(self.chart.y.title)}</text>'
        )
        return "".join(parts)

    def _band(self, low: float, high: float) -> str:
        start, end = (self.chart.x.place(value) for value in (low, high))
        width = self._x(end - start)
        return f'<rect class="band" x="{self._x(start)}" y="{self._y(1)}" width="{width}" height="{self._y(0)}"/>'

    def _line(self, series: Series) -> str:
        width, height = self.size or (CELLS, CELLS)
        places = [self._place(mark) for mark in series.marks]
        if series.is_stepped:
            places = places[:1] + [step for one, two in pairwise(places) for step in ((two[0], one[1]), two)]
        points = " ".join(f"{width * x:.1f},{height * (1 - y):.1f}" for x, y in places)
        names = ("dashed", series.is_dashed), ("faint", series.is_faint), ("strong", series.is_strong)
        classes = " ".join([class_of(series.number), *(name for name, applies in names if applies)])
        line = f'<polyline class="line {classes}" points="{points}" vector-effect="non-scaling-stroke"/>'
        if self.size:
            return line
        return (
            f'<svg viewBox="0 0 {CELLS} {CELLS}" preserveAspectRatio="none" width="100%" height="100%" '
            f'overflow="visible">{line}</svg>'
        )

    def _marks(self, series: Series) -> str:
        ends = "".join(self._interval(series, mark) for mark in series.marks if mark.ends)
        # A line alone has the shape that its legend shows at its end.
        marks = series.marks if series.has_marks else series.marks[-1:] if series.name else ()
        return ends + "".join(self._mark(series, mark) for mark in marks)

    def _interval(self, series: Series, mark: Mark) -> str:
        assert mark.ends
        x = self._x(self.chart.x.place(mark.x))
        low, high = (self._y(self.chart.y.place(end)) for end in mark.ends)
        return f'<line class="interval {class_of(series.number)}" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>'

    def _mark(self, series: Series, mark: Mark) -> str:
        x, y = self._place(mark)
        title = f"<title>{escape(mark.says)}</title>" if mark.says else ""
        shape = f'<g class="mark {class_of(series.number)}">{title}{shape_of(series.number)}</g>'
        if self.size:
            return f'<g transform="translate({self._x(x)},{self._y(y)})">{shape}</g>'
        if mark.href:
            # The circle is what a finger hits.
            target = f'<a href="{escape(mark.href)}" aria-label="{escape(mark.says)}">'
            shape = f'{target}<circle class="hit" r="12"/>{shape}</a>'
        return f'<svg x="{self._x(x)}" y="{self._y(y)}" overflow="visible">{shape}</svg>'


def _legend(series: Series, index: int, width: int, top: int) -> str:
    x, y = (index % 3) * width / 3, 32 - top + 20 * (index // 3)
    shape = f'<g class="mark {class_of(series.number)}">{shape_of(series.number)}</g>'
    mark = f'<g transform="translate({x + 6:.1f},{y})">{shape}</g>'
    return f'{mark}<text x="{x + 18:.1f}" y="{y}" dy=".32em" fill="{INK}">{escape(series.name)}</text>'


def _resolve(content: str) -> str:
    """Write style.css's rules into a file's elements: many programs that read SVG do not read CSS."""
    looks = {
        'class="grid"': f'stroke="{LINE}"',
        'class="axis"': f'stroke="{FAINT}"',
        'class="tick"': f'fill="{FAINT}"',
        'class="name"': f'fill="{INK}"',
        'class="band"': f'fill="{COLORS[0]}" fill-opacity=".12"',
    }
    for name, color in [("base", BASE), *((class_of(number), color) for number, color in enumerate(COLORS))]:
        line = f'fill="none" stroke="{color}" stroke-linejoin="round"'
        looks |= {
            f'class="line {name}"': f'{line} stroke-width="2"',
            f'class="line {name} dashed"': f'{line} stroke-width="2" stroke-dasharray="5 4"',
            f'class="line {name} faint"': f'{line} stroke-width="1" stroke-opacity=".4"',
            f'class="line {name} strong"': f'{line} stroke-width="6" stroke-opacity=".45"',
            f'class="interval {name}"': f'stroke="{color}" stroke-width="1.5"',
            f'class="mark {name}"': f'fill="{color}"',
        }
    for name, look in looks.items():
        content = content.replace(name, look)
    return content
