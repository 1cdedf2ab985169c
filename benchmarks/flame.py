"""Flame graphs: stacks with counts as one SVG. Width is time, the root is at the bottom, hovering names a frame.

The form is Brendan Gregg's (https://www.brendangregg.com/flamegraphs.html); stacks come "folded": frames joined by
semicolons, root first, a space, a count.
"""

import html
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

WIDTH, ROW, LETTER = 1200, 17, 6.6  # pixels; of a letter at 11 px, about
NARROWEST = 0.3  # pixels: what is narrower is left out


@dataclass
class Frame:
    count: int = 0
    children: dict[str, "Frame"] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return 1 + max((child.depth for child in self.children.values()), default=0)


def tree(folded: Iterable[str]) -> Frame:
    root = Frame()
    for line in folded:
        stack, _, count = line.strip().rpartition(" ")
        if not stack or not count.isdigit():
            continue
        here = root
        here.count += int(count)
        for name in stack.split(";"):
            here = here.children.setdefault(name, Frame())
            here.count += int(count)
    return root


def boxes(frame: Frame, left: float, level: int, scale: float) -> Iterator[tuple[str, Frame, float, int]]:
    """Name, frame, left edge and level of all that is wide enough, children in order of their names."""
    for name, child in sorted(frame.children.items()):
        if child.count * scale >= NARROWEST:
            yield name, child, left, level
            yield from boxes(child, left, level + 1, scale)
        left += child.count * scale


def svg(folded: Iterable[str], title: str) -> str:
    """The graph. Of no samples a picture that says so."""
    root = tree(folded)
    height = (root.depth + 2) * ROW
    scale = WIDTH / max(root.count, 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="100%" font-family="monospace" '
        f'font-size="11"><rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="4" y="13" font-size="13">{html.escape(title)}: {root.count:,} samples</text>',
    ]
    for name, frame, left, level in boxes(root, 0.0, 0, scale):
        width, y = frame.count * scale, height - (level + 1) * ROW
        tone = zlib.crc32(name.encode()) % 40  # the same name has the same colour everywhere
        share = f"{name}: {frame.count:,} samples, {100 * frame.count / root.count:.1f} %"
        letters = int(width / LETTER) - 1
        label = name if len(name) <= letters else name[: letters - 2] + ".." if letters > 4 else ""
        parts.append(
            f"<g><title>{html.escape(share)}</title>"
            f'<rect x="{left:.1f}" y="{y}" width="{max(width - 0.5, 0.2):.1f}" height="{ROW - 1}" '
            f'fill="hsl({10 + tone},85%,{62 + tone % 12}%)"/>'
            f'<text x="{left + 3:.1f}" y="{y + 12}">{html.escape(label)}</text></g>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def folded_perf(script: str) -> Iterator[str]:
    """Of what `perf script --fields comm,ip,sym` prints: a block for each sample, the innermost frame first."""
    counts: Counter[str] = Counter()
    for block in script.split("\n\n"):
        command, *frames = block.strip().splitlines() or [""]
        names = [line.strip().partition(" ")[2].replace(";", ":") or "[unknown]" for line in frames]
        if command:
            counts[";".join([command.strip(), *reversed(names)])] += 1
    return (f"{stack} {count}" for stack, count in sorted(counts.items()))
