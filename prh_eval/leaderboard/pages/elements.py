"""HTML elements. They are ElementTree's, which escapes every text that is in them."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element, tostring

Child = Element | str | None


def element(tag: str, *children: Child, **attributes: str | None) -> Element:
    """An element; class_ is class, other underscores are hyphens, None is no attribute."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    made = Element(tag, {name: value for name, value in named.items() if value is not None})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif child is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + child
        elif child is not None:
            made.text = (made.text or "") + child
    return made


def section(title: str, *children: Child) -> Element:
    """A section of a page, under a heading."""
    return element("section", element("h2", title), *children)


def scrolling(table: Element, label: str) -> Element:
    """A box in which a wide table scrolls, also by keyboard."""
    return element("div", table, class_="scroll", role="region", tabindex="0", aria_label=label)


def link(address: str, *children: Child) -> Element:
    """A link that tells the other side nothing."""
    return element("a", *children, href=address, rel="noopener noreferrer")


def is_web(address: str) -> bool:
    """Whether an address may be a link: others, as javascript:, would run."""
    return address.lower().startswith(("https://", "http://"))


def markup(elements: Iterable[Element]) -> str:
    """Elements as HTML, a line each."""
    return "\n".join(tostring(each, encoding="unicode", method="html") for each in elements)
