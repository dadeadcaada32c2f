from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from duostore_server.cli.picture import picture_of

SVG = "{http://www.w3.org/2000/svg}"


def drawn() -> str:
    styled = Text("all is well & {fine}", style="bold green")
    return picture_of(Group(styled, Panel("up"), Text("down", "white on red")), "a <title> {1}")


def test_a_picture_has_its_text_and_title() -> None:
    picture = ET.fromstring(drawn())
    assert picture.findtext(f"{SVG}title") == "a <title> {1}"
    texts = ["".join(text.itertext()).replace("\xa0", " ") for text in picture.iter(f"{SVG}text")]
    assert "all is well & {fine}" in texts
    assert any("up" in text for text in texts)
    assert all(text.strip() for text in texts)


def test_a_picture_needs_nothing_else_and_knows_light_and_dark() -> None:
    text = drawn()
    assert "prefers-color-scheme: dark" in text
    inside = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|@import|@font-face|url\(|<image|<script", inside)


def test_every_colour_is_one_of_the_reader_s_choice() -> None:
    text = drawn()
    light, dark = (
        dict(re.findall(r"(--c\d+): (#\w{6});", scheme))
        for scheme in re.findall(r"svg \{ (--c0:[^}]*)\}", text)
    )
    assert light.keys() == dark.keys()
    assert light["--c0"] != dark["--c0"], "text"
    assert light["--c1"] != dark["--c1"], "background"
    used = set(re.findall(r"var\((--c\d+)\)", text))
    assert used <= light.keys()
    # Green, red and, of a frame that has no colour of its own, that of the text.
    assert {"--c0", "--c1", "--c3", "--c4"} <= used
    body = re.sub(r"(?s)<style>.*</style>", "", text)
    # But for the three buttons of the window.
    assert len(re.findall(r"#[0-9a-f]{6}|rgb", body)) == 3
