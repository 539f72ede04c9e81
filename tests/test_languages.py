"""Language codes in every spelling that corpora and benchmarks use."""

import re

import pytest

from babelscope.errors import ConfigError
from babelscope.languages import all_languages, get_language

XLM_R = (
    "af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he hi hr hu hy id is it "
    "ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om or pa pl ps pt ro ru sa sd si sk sl so sq "
    "sr su sv sw ta te th tl tr ug uk ur uz vi xh yi zh zh-Hant"
)


@pytest.mark.parametrize(
    ("spelling", "code"),
    [
        ("fr", "fr"),
        ("FRA", "fr"),
        ("fre", "fr"),
        ("fra_latn", "fr"),
        ("French", "fr"),
        (" french ", "fr"),
        ("zh-CN", "zh"),
        ("zho-CN", "zh"),
        ("zh_Hans_CN", "zh"),
        ("cmn", "zh"),
        ("cmn_hans", "zh"),
        ("zho-TW", "zh-Hant"),
        ("zh-HK", "zh-Hant"),
        ("zho_Hant", "zh-Hant"),
        ("zh-hant", "zh-Hant"),
        ("swa", "sw"),
        ("swh_Latn", "sw"),
        ("es-419", "es"),
        ("spa-MX", "es"),
        ("jap", "ja"),
        ("kor_Kore", "ko"),
        ("nb", "no"),
        ("iw", "he"),
        ("Farsi", "fa"),
        ("ckb", "ckb"),
    ],
)
def test_spellings(spelling: str, code: str) -> None:
    assert get_language(spelling).code == code


def test_fields() -> None:
    arabic = get_language("ar")
    assert (arabic.name, arabic.flores, arabic.script, arabic.direction) == ("Arabic", "arb_Arab", "Arab", "rtl")
    assert get_language("dv").direction == get_language("yi").direction == "rtl"
    assert get_language("th").direction == "ltr"


def test_another_script_is_another_written_language() -> None:
    romanised = get_language("hin_Latn")
    assert (romanised.code, romanised.flores, romanised.script) == ("hi-Latn", "hin_Latn", "Latn")
    assert get_language(romanised.code) == romanised
    assert get_language("urd-Latn").direction == "ltr"
    assert get_language("aze-Arab").direction == "rtl"


def test_the_table_is_consistent() -> None:
    languages = all_languages()
    assert [language.code for language in languages] == sorted({language.code for language in languages})
    assert len({language.flores for language in languages}) == len(languages)
    assert len({language.name for language in languages}) == len(languages)
    for language in languages:
        assert re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", language.flores)
        assert language.flores.endswith(language.script)
        assert get_language(language.code) == get_language(language.flores) == get_language(language.name) == language


def test_xlm_r_is_covered() -> None:
    assert {get_language(code).code for code in XLM_R.split()} == set(XLM_R.split())


@pytest.mark.parametrize(
    ("spelling", "suggestion"),
    [
        ("Frnech", "did you mean fr (French)?"),
        ("fra_Lat", "did you mean fr (French)"),
        ("zho_Han", "zh (Chinese)"),
        ("fr_Xxxx", "did you mean fr (French)"),
        ("swahilli", "did you mean sw (Swahili)?"),
    ],
)
def test_unknown_code_suggests(spelling: str, suggestion: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_language(spelling)
    message = str(caught.value)
    assert repr(spelling) in message
    assert suggestion in message
    assert "fra_Latn" in message
    assert "all_languages()" in message


@pytest.mark.parametrize("spelling", ["", "qqq", "français langue", "1234"])
def test_nothing_close_suggests_nothing(spelling: str) -> None:
    with pytest.raises(ConfigError, match="unknown language") as caught:
        get_language(spelling)
    assert "did you mean" not in str(caught.value)
