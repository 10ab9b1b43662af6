"""Split prose into sentences by rule: English punctuation, and the full stops of other scripts.

A sentence ends

- after a run of . ! ? … (or the Arabic, Devanagari, Ethiopic or Armenian stop), with the quotes and
  brackets that close behind it, if white space follows and the next word does not begin with a
  lower-case letter: `"Stop!" he said.` is one sentence;
- after a run of 。 ！ ？ ． ｡, with what closes behind it, also without white space, unless a comma
  or the quoting particle と/っ goes on with the sentence.

A single full stop ends nothing after a title or another abbreviation that stands before a word
(Mr., Dr., e.g.), after one that stands before a number (No. 5, p. 12), after an initial (H. G.
Wells) or inside a dotted acronym before a name (U.S. Army). `I.` (but for R. I. P.), `a.m.`, `etc.`
and `Jr.` do end a sentence that a capital follows.
"""

import re

_CLOSERS = "\"'”’»)\\]}」』〉》】）］｝"
_OPENERS = "\"'“‘„«([{「『〈《【（［｛—–-*_"

_STOPS = ".!?…؟۔।॥።։"
_WIDE_STOPS = "。！？．｡"
_WIDE = frozenset(_WIDE_STOPS)
_GOES_ON = ("、", "，", ",", "と", "っ")

# A run of stops with what closes behind it, and the beginning of the next word if there is white
# space between. The pattern begins with a plain set, which `re` looks for fastest, and its repeats
# are possessive, which keeps the search linear on any text.
_CANDIDATE = re.compile(
    rf"([{_STOPS}{_WIDE_STOPS}]++)[{_CLOSERS}]*+"
    rf"(?:(?=\s++[{re.escape(_OPENERS)}\s]*+(\S))|)"
)
_LAST_WORD = re.compile(r"[\w.&’']*\Z")
# Longest abbreviation looked for, so that the search stays constant however long the sentence is.
_WORD_REACH = 16
_AFTER_INITIAL = re.compile(r"\b[^\W\d_]\.\s*\w\Z")
_ACRONYM = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BEFORE_WORD = _words("""
    mr mrs ms mx dr prof st ste rev hon gen col capt cpt cmdr lieut lt maj sgt sergt corp
    adm gov sen rep pres messrs mssrs mme mlle mgr esq bros ald supt dept mt vs viz cf ca
    e.g i.e
""")
_BEFORE_NUMBER = _words("""
    no nos pp art arts sec secs para par ver vv vol vols fig figs ch chap jan feb mar apr
    jun jul aug sept sep oct nov dec
""")
_ENDING_ACRONYMS = frozenset({"a.m", "p.m", "a.d", "b.c"})


def split_sentences(text: str) -> list[str]:
    """Split a paragraph into sentences; nothing but white space around sentences is lost."""
    sentences = []
    start = 0
    for match in _CANDIDATE.finditer(text):
        if not _ends_sentence(text, match):
            continue
        end = match.end()
        sentence = text[start:end].strip()
        if sentence:
            sentences.append(sentence)
        start = end
    rest = text[start:].strip()
    if rest:
        sentences.append(rest)
    return sentences


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    """Whether a match of `_CANDIDATE` in `text` ends a sentence."""
    stop, following = match.groups()
    if not stop.isascii() and not _WIDE.isdisjoint(stop):
        return not text.startswith(_GOES_ON, match.end())
    if following is None or following.islower():
        return False
    if not (following.isalnum() or following in "$£€#&@¿¡"):
        return False
    begin, end = match.span()
    if stop != "." or end != begin + 1:
        return True
    return not _is_abbreviation(text[max(0, begin - _WORD_REACH) : begin], following)


def _is_abbreviation(before: str, following: str) -> bool:
    """Whether the word at the end of `before` needs its full stop; `following` begins the next."""
    word = _LAST_WORD.search(before)[0].lstrip("'’.")  # type: ignore[index]
    if len(word) == 1:
        is_initial = word.isupper() and (word != "I" or _AFTER_INITIAL.search(before) is not None)
        return word.isalpha() and (is_initial or following.isdigit())
    lower = word.lower()
    if lower in _BEFORE_WORD:
        return True
    if lower in _BEFORE_NUMBER:
        return following.isdigit()
    return lower not in _ENDING_ACRONYMS and _ACRONYM.fullmatch(word) is not None
