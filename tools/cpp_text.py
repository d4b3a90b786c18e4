"""What the checkers need to know of C++ text: where comments and literals are."""
import re

_TOKEN = re.compile(
    r"""//[^\n]*                                   # line comment
      | /\*.*?\*/                                  # block comment
      | R"(?P<tag>[^()\\\s]{0,16})\(.*?\)(?P=tag)" # raw string
      | "(?:\\.|[^"\\\n])*"                        # string
      | (?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'        # character, not a digit separator
    """,
    re.S | re.X,
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?P<open>[<"])(?P<path>[^>"\n]+)[>"]', re.M)


def _blank(match):
    text = match.group()
    return re.sub(r"[^\n]", " ", text)


def code_only(text):
    """The text with comments and literals replaced by spaces; every line keeps its number."""
    return _TOKEN.sub(_blank, text)


def without_comments(text):
    """The text with comments replaced by spaces; literals (and so include paths) stay."""
    return _TOKEN.sub(lambda m: _blank(m) if m.group().startswith(("//", "/*")) else m.group(), text)


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def includes(text):
    """(line, path, is_quoted) of every include outside comments."""
    clean = without_comments(text)
    for match in _INCLUDE.finditer(clean):
        yield line_of(clean, match.start("open")), match.group("path"), match.group("open") == '"'
