"""Lists of a Pascal VOC set's images, which are called one and two; most of them bad."""

from collections.abc import Callable
from pathlib import Path

FILES: dict[str, bytes | Callable[[Path], object]] = {
    "good.txt": b"one\ntwo\n",
    "no_newline_at_the_end.txt": b"one\ntwo",
    "crlf.txt": b"one\r\ntwo\r\n",
    "blank_lines.txt": b"\n\none\n  \n\ttwo  \n\n",
    "suffixes.txt": b"one.jpg\nJPEGImages/two.jpg\n",
    "repeated.txt": b"one\ntwo\none\n",
    "absent.txt": b"one\nthree\n",
    "above.txt": b"one\n../../two\n/etc/passwd\n",
    "empty.txt": b"",
    "nul.txt": b"one\nt\0wo\n",
    "escape.txt": b"one\nt\x1b[2Jwo\n",
    "utf8_bom.txt": b"\xef\xbb\xbfone\ntwo\n",
    "utf16.txt": "one\ntwo\n".encode("utf-16"),
    "latin1.txt": b"one\ncaf\xe9\n",
    "long_line.txt": b"one\n" + b"two" * 2000 + b"\n",
    "of_a_class.txt": b"one  1\ntwo -1\n",
}
