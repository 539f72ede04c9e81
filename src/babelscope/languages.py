"""Languages by code: ISO 639-1 outside, FLORES inside, with their scripts and writing directions."""

import difflib
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from babelscope.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Language:
    """A written language: a language in one script."""

    code: str
    """ISO 639-1 where there is such a code, else ISO 639-3; with a script (`zh-Hant`) when it isn't the usual one."""
    name: str
    """English name."""
    flores: str
    """ISO 639-3 and script in the manner of FLORES-200, such as `fra_Latn`, also for languages that FLORES lacks."""
    script: str
    """ISO 15924 code, such as `Latn`."""
    direction: Literal["ltr", "rtl"]
    """Writing direction of the script."""


# The 100 languages of XLM-R, the ten of the paper and the larger ones of NTREX and FLORES-200.
# The FLORES code names the variety that those test sets hold: `ar` is Modern Standard Arabic, `sw` is Swahili proper.
_TABLE = (
    ("af", "afr_Latn", "Afrikaans"),
    ("am", "amh_Ethi", "Amharic"),
    ("ar", "arb_Arab", "Arabic"),
    ("as", "asm_Beng", "Assamese"),
    ("ast", "ast_Latn", "Asturian"),
    ("ay", "ayr_Latn", "Aymara"),
    ("az", "azj_Latn", "Azerbaijani"),
    ("ba", "bak_Cyrl", "Bashkir"),
    ("be", "bel_Cyrl", "Belarusian"),
    ("bg", "bul_Cyrl", "Bulgarian"),
    ("bho", "bho_Deva", "Bhojpuri"),
    ("bm", "bam_Latn", "Bambara"),
    ("bn", "ben_Beng", "Bengali"),
    ("bo", "bod_Tibt", "Tibetan"),
    ("br", "bre_Latn", "Breton"),
    ("bs", "bos_Latn", "Bosnian"),
    ("ca", "cat_Latn", "Catalan"),
    ("ceb", "ceb_Latn", "Cebuano"),
    ("ckb", "ckb_Arab", "Central Kurdish"),
    ("cs", "ces_Latn", "Czech"),
    ("cy", "cym_Latn", "Welsh"),
    ("da", "dan_Latn", "Danish"),
    ("de", "deu_Latn", "German"),
    ("dv", "div_Thaa", "Dhivehi"),
    ("dz", "dzo_Tibt", "Dzongkha"),
    ("ee", "ewe_Latn", "Ewe"),
    ("el", "ell_Grek", "Greek"),
    ("en", "eng_Latn", "English"),
    ("eo", "epo_Latn", "Esperanto"),
    ("es", "spa_Latn", "Spanish"),
    ("et", "est_Latn", "Estonian"),
    ("eu", "eus_Latn", "Basque"),
    ("fa", "pes_Arab", "Persian"),
    ("fi", "fin_Latn", "Finnish"),
    ("fj", "fij_Latn", "Fijian"),
    ("fo", "fao_Latn", "Faroese"),
    ("fr", "fra_Latn", "French"),
    ("fy", "fry_Latn", "Western Frisian"),
    ("ga", "gle_Latn", "Irish"),
    ("gd", "gla_Latn", "Scottish Gaelic"),
    ("gl", "glg_Latn", "Galician"),
    ("gn", "grn_Latn", "Guarani"),
    ("gu", "guj_Gujr", "Gujarati"),
    ("ha", "hau_Latn", "Hausa"),
    ("he", "heb_Hebr", "Hebrew"),
    ("hi", "hin_Deva", "Hindi"),
    ("hr", "hrv_Latn", "Croatian"),
    ("ht", "hat_Latn", "Haitian Creole"),
    ("hu", "hun_Latn", "Hungarian"),
    ("hy", "hye_Armn", "Armenian"),
    ("id", "ind_Latn", "Indonesian"),
    ("ig", "ibo_Latn", "Igbo"),
    ("ilo", "ilo_Latn", "Ilocano"),
    ("is", "isl_Latn", "Icelandic"),
    ("it", "ita_Latn", "Italian"),
    ("ja", "jpn_Jpan", "Japanese"),
    ("jv", "jav_Latn", "Javanese"),
    ("ka", "kat_Geor", "Georgian"),
    ("kk", "kaz_Cyrl", "Kazakh"),
    ("km", "khm_Khmr", "Khmer"),
    ("kn", "kan_Knda", "Kannada"),
    ("ko", "kor_Hang", "Korean"),
    ("ku", "kmr_Latn", "Kurdish"),
    ("ky", "kir_Cyrl", "Kyrgyz"),
    ("la", "lat_Latn", "Latin"),
    ("lb", "ltz_Latn", "Luxembourgish"),
    ("lg", "lug_Latn", "Ganda"),
    ("ln", "lin_Latn", "Lingala"),
    ("lo", "lao_Laoo", "Lao"),
    ("lt", "lit_Latn", "Lithuanian"),
    ("lv", "lvs_Latn", "Latvian"),
    ("mai", "mai_Deva", "Maithili"),
    ("mg", "plt_Latn", "Malagasy"),
    ("mi", "mri_Latn", "Maori"),
    ("mk", "mkd_Cyrl", "Macedonian"),
    ("ml", "mal_Mlym", "Malayalam"),
    ("mn", "khk_Cyrl", "Mongolian"),
    ("mr", "mar_Deva", "Marathi"),
    ("ms", "zsm_Latn", "Malay"),
    ("mt", "mlt_Latn", "Maltese"),
    ("my", "mya_Mymr", "Burmese"),
    ("ne", "npi_Deva", "Nepali"),
    ("nl", "nld_Latn", "Dutch"),
    ("nn", "nno_Latn", "Norwegian Nynorsk"),
    ("no", "nob_Latn", "Norwegian"),
    ("nso", "nso_Latn", "Northern Sotho"),
    ("ny", "nya_Latn", "Chichewa"),
    ("oc", "oci_Latn", "Occitan"),
    ("om", "gaz_Latn", "Oromo"),
    ("or", "ory_Orya", "Odia"),
    ("pa", "pan_Guru", "Punjabi"),
    ("pl", "pol_Latn", "Polish"),
    ("prs", "prs_Arab", "Dari"),
    ("ps", "pbt_Arab", "Pashto"),
    ("pt", "por_Latn", "Portuguese"),
    ("qu", "quy_Latn", "Quechua"),
    ("ro", "ron_Latn", "Romanian"),
    ("ru", "rus_Cyrl", "Russian"),
    ("rw", "kin_Latn", "Kinyarwanda"),
    ("sa", "san_Deva", "Sanskrit"),
    ("sc", "srd_Latn", "Sardinian"),
    ("sd", "snd_Arab", "Sindhi"),
    ("si", "sin_Sinh", "Sinhala"),
    ("sk", "slk_Latn", "Slovak"),
    ("sl", "slv_Latn", "Slovenian"),
    ("sm", "smo_Latn", "Samoan"),
    ("sn", "sna_Latn", "Shona"),
    ("so", "som_Latn", "Somali"),
    ("sq", "als_Latn", "Albanian"),
    ("sr", "srp_Cyrl", "Serbian"),
    ("ss", "ssw_Latn", "Swati"),
    ("st", "sot_Latn", "Southern Sotho"),
    ("su", "sun_Latn", "Sundanese"),
    ("sv", "swe_Latn", "Swedish"),
    ("sw", "swh_Latn", "Swahili"),
    ("ta", "tam_Taml", "Tamil"),
    ("te", "tel_Telu", "Telugu"),
    ("tg", "tgk_Cyrl", "Tajik"),
    ("th", "tha_Thai", "Thai"),
    ("ti", "tir_Ethi", "Tigrinya"),
    ("tk", "tuk_Latn", "Turkmen"),
    ("tl", "tgl_Latn", "Tagalog"),
    ("tn", "tsn_Latn", "Tswana"),
    ("to", "ton_Latn", "Tongan"),
    ("tr", "tur_Latn", "Turkish"),
    ("ts", "tso_Latn", "Tsonga"),
    ("tt", "tat_Cyrl", "Tatar"),
    ("ug", "uig_Arab", "Uyghur"),
    ("uk", "ukr_Cyrl", "Ukrainian"),
    ("ur", "urd_Arab", "Urdu"),
    ("uz", "uzn_Latn", "Uzbek"),
    ("ve", "ven_Latn", "Venda"),
    ("vi", "vie_Latn", "Vietnamese"),
    ("war", "war_Latn", "Waray"),
    ("wo", "wol_Latn", "Wolof"),
    ("xh", "xho_Latn", "Xhosa"),
    ("yi", "ydd_Hebr", "Yiddish"),
    ("yo", "yor_Latn", "Yoruba"),
    ("yue", "yue_Hant", "Cantonese"),
    ("zh", "zho_Hans", "Chinese"),
    ("zh-Hant", "zho_Hant", "Traditional Chinese"),
    ("zu", "zul_Latn", "Zulu"),
)

# Macrolanguages and single varieties (ISO 639-3), bibliographic codes (ISO 639-2/B), withdrawn codes, other names,
# and `jap`, which X-CSQA uses.
_ALIASES = {
    "ar": ("ara", "modern standard arabic"),
    "ay": ("aym",),
    "az": ("aze",),
    "bo": ("tib",),
    "ckb": ("sorani",),
    "cs": ("cze",),
    "cy": ("wel",),
    "de": ("ger",),
    "dv": ("divehi", "maldivian"),
    "el": ("gre",),
    "et": ("ekk",),
    "eu": ("baq",),
    "fa": ("fas", "per", "farsi"),
    "fr": ("fre",),
    "gn": ("gug",),
    "he": ("iw",),
    "hy": ("arm",),
    "id": ("in",),
    "is": ("ice",),
    "ja": ("jap",),
    "jv": ("jw",),
    "ka": ("geo",),
    "ku": ("kur", "kurmanji", "northern kurdish"),
    "lg": ("luganda",),
    "lv": ("lav",),
    "mg": ("mlg",),
    "mi": ("mao",),
    "mk": ("mac",),
    "mn": ("mon",),
    "ms": ("msa", "may"),
    "my": ("bur",),
    "ne": ("nep",),
    "nl": ("dut",),
    "no": ("nor", "nb", "norwegian bokmål", "norwegian bokmal"),
    "nso": ("sepedi",),
    "ny": ("nyanja",),
    "om": ("orm",),
    "or": ("ori", "oriya"),
    "ps": ("pus", "pashtu"),
    "qu": ("que",),
    "ro": ("rum",),
    "sk": ("slo",),
    "sq": ("sqi", "alb"),
    "st": ("sesotho",),
    "sw": ("swa",),
    "tl": ("fil", "filipino"),
    "uz": ("uzb",),
    "yi": ("yid", "ji"),
    "zh": ("cmn", "chi", "mandarin", "simplified chinese"),
}

_RIGHT_TO_LEFT = frozenset({"Arab", "Hebr", "Thaa"})
_SAME_SCRIPT = {"Kore": "Hang", "Aran": "Arab"}
"""Codes that other data sets use, and the one that FLORES uses."""
_TRADITIONAL_REGIONS = frozenset({"TW", "HK", "MO"})
_TAG = re.compile(r"(?P<language>[a-z]{2,3})(?:[-_](?P<script>[a-z]{4}))?(?:[-_](?P<region>[a-z]{2}|\d{3}))?", re.I)


@cache
def all_languages() -> tuple[Language, ...]:
    """All languages of the table, in the order of their codes."""
    return tuple(_language(code, name, *flores.split("_")) for code, flores, name in _TABLE)


def get_language(code: str) -> Language:
    """The language that a code or an English name means.

    Args:
        code: ISO 639-1, -2 or -3 (`fr`, `fre`, `fra`), FLORES (`fra_Latn`) or an English name (`French`), in any case.
            A script may follow (`hi-Latn`, `zho_Hant`), and a region (`zh-CN`, `spa-MX`); the region only decides
            between the two Chinese scripts.

    Raises:
        ConfigError: no such language, or no such script; the message names close matches.
    """
    index = _index()
    wanted = code.strip()
    if language := index.get(wanted.casefold()):
        return language
    tag = _TAG.fullmatch(wanted)
    base = index.get(tag["language"].casefold()) if tag else None
    if tag and base:
        script = tag["script"].title() if tag["script"] else base.script
        if not tag["script"] and base.code == "zh" and (tag["region"] or "").upper() in _TRADITIONAL_REGIONS:
            script = "Hant"
        if language := _in_script(base, _SAME_SCRIPT.get(script, script)):
            return language
    raise ConfigError(
        f"unknown language {code!r}: wanted a code such as fr, fra or fra_Latn, or an English name such as French; "
        f"{_suggestion(wanted, base)}babelscope.languages.all_languages() lists all {len(_TABLE)}"
    )


def _language(code: str, name: str, iso_639_3: str, script: str) -> Language:
    direction: Literal["ltr", "rtl"] = "rtl" if script in _RIGHT_TO_LEFT else "ltr"
    return Language(code, name, f"{iso_639_3}_{script}", script, direction)


@cache
def _index() -> dict[str, Language]:
    """Every accepted spelling, case-folded. A FLORES language code belongs to the first script of the table."""
    index: dict[str, Language] = {}
    for language in all_languages():
        spellings = (language.code, language.name, language.flores, *_ALIASES.get(language.code, ()))
        for spelling in (*spellings, language.flores.split("_")[0]):
            index.setdefault(spelling.casefold(), language)
    return index


def _in_script(base: Language, script: str) -> Language | None:
    """`base` written in another script of the table, such as romanised Hindi; None if no language has that script."""
    if script == base.script:
        return base
    if script not in {language.script for language in all_languages()}:
        return None
    iso_639_3 = base.flores.split("_")[0]
    if listed := _index().get(f"{iso_639_3}_{script}".casefold()):
        return listed
    return _language(f"{base.code}-{script}", f"{base.name} ({script})", iso_639_3, script)


def _suggestion(wanted: str, base: Language | None) -> str:
    index = _index()
    close = [index[spelling] for spelling in difflib.get_close_matches(wanted.casefold(), index, n=5, cutoff=0.65)]
    found = dict.fromkeys(([base] if base else []) + close)
    if not found:
        return ""
    return "did you mean " + " or ".join(f"{language.code} ({language.name})" for language in list(found)[:3]) + "? "
