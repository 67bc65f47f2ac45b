#!/usr/bin/env python3
"""Writes corpus.json and one golden per vocabulary: the ids llama.cpp gives to every sample.

Run with a Python that has llama-cpp-python (0.3.36 made the files here):

    python make.py MODELS_DIRECTORY

MODELS_DIRECTORY holds smollm2.gguf, qwen2.5-coder-0.5b.gguf and gemma3-270m.gguf. Each golden
lists, per sample, the ids with special=False, and for samples marked "parse" also with
special=True; then every id that ends generation, the special ids, and pieces of some tokens.
The text was written for this project and is free of rights (CC0).
"""

import hashlib
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
MODELS = ["smollm2", "qwen2.5-coder-0.5b", "gemma3-270m"]

LATIN = [
    "Hello, world!", "hello world", " leading and trailing ", "The quick brown fox jumps over the lazy dog.",
    "I'm sure they've said it's what we'd do, aren't you? You'll see, don't they're",
    "I'M SURE THEY'VE SAID IT'S WHAT WE'D DO, AREN'T YOU? YOU'LL SEE",
    "rock 'n' roll, '90s, the dogs' bowls, 'tis, o'clock's ''quoted''",
    "UPPER lower Title MiXeD CamelCaseWord snake_case_word kebab-case-word SCREAMING_CASE",
    "Über den Wölken, Straße, naïve café, señor, œuvre, Łódź, İstanbul ıspanak, smørrebrød, það",
    "Tiếng Việt có nhiều dấu: Nguyễn, đường phố, những điều tốt đẹp",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "https://example.org/path/to/page.html?query=value&other=1%202#fragment and mailto:me@example.org",
    "Version 1.2.3-rc.4+build.567, released 2024-02-29T13:37:00Z, costs $1,234.56 or 1 234,56 \u20ac",
    "0 1 12 123 1234 12345 123456 1234567 12345678 3.14159265358979 1e-10 0xDEADBEEF 0b1010 1_000_000",
    "A sentence. Another one! A third? Yes; no: maybe... (parenthesised) [bracketed] {braced} <angled>",
    "word-word word\u2014word word\u2013word \u201cquoted\u201d \u2018single\u2019 \u00abguillemets\u00bb \u2026 \u2022 \u2020 \u00a7 \u00b6",
]
SCRIPTS = [
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί· Ἐν ἀρχῇ ἦν ὁ λόγος",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак, ґанок, ўсё",
    "مرحبا بالعالم، كيف حالك اليوم؟ السَّلَامُ عَلَيْكُمْ ١٢٣٤٥",
    "שלום עולם, מה שלומך היום? בְּרֵאשִׁית בָּרָא",
    "नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय ज्ञान १२३४५",
    "สวัสดีชาวโลก วันนี้อากาศดีมาก ๑๒๓",
    "你好，世界！今天天气怎么样？我们去公园散步吧。一二三四五",
    "繁體中文測試：龍、龜、鬱、體。𠮷野家，𪚥",
    "こんにちは世界。今日はとても良い天気ですね！カタカナとひらがな、ﾊﾝｶｸ、ー～",
    "안녕하세요 세계! 오늘 날씨가 어떻습니까? ㄱㄴㄷ 각각",
    "გამარჯობა მსოფლიო, როგორ ხარ? ᲒᲐᲛᲐᲠᲯᲝᲑᲐ",
    "ሰላም ልዑል፣ እንዴት ነህ? ፩፪፫",
    "Բարեւ աշխարհ, ինչպե՞ս ես",
    "হ্যালো বিশ্ব, কেমন আছো? ১২৩",
    "வணக்கம் உலகம், எப்படி இருக்கிறாய்?",
    "ಹಲೋ ವಿಶ್ವ మీరు ఎలా ఉన్నారు ഹലോ ലോകം ආයුබෝවන් ලෝකය",
    "မင်္ဂလာပါ ကမ္ဘာလောက សួស្តីពិភពលោក ສະບາຍດີຊາວໂລກ བཀྲ་ཤིས་བདེ་ལེགས།",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᠮᠣᠩᠭᠣᠯ ᐃᓄᒃᑎᑐᑦ ⴰⵣⵓⵍ ߒߞߏ",
    "𝓜𝓪𝓽𝓱 𝕬𝖑𝖕𝖍𝖆𝖇𝖊𝖙 ℵ₀ ∀x∈ℝ: ∃y ≥ √x ⇒ ∑ᵢ₌₁ⁿ i² ≠ ∫₀^∞ e^{−x}dx ½ ⅓ Ⅷ ① ² ³",
    "mixed Привет world 世界 مرحبا 123 γειά",
]
EMOJI = [
    "😀😃😄 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ❤️ ☺︎ 🧑🏿‍🚀 1️⃣ #️⃣",
    "a😀b 😀 c👩‍💻d\u200d\u200be\ufeff",
    "🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀",
]
COMBINING = [
    "e\u0301 a\u0308 n\u0303 o\u0302\u0323 Z\u0351\u036b\u0343\u0323\u0353a\u0328\u0344l\u0489g\u0334o\u0335",
    "\u0301leading combining, \u00e9 against e\u0301, \uac00 against \u1100\u1161, \u212b against \u00c5",
    "q\u0323\u0307'\u0301s \u0301\u0302 'S\u0301 \u2019s",
]
SPACES = [
    "", " ", "  ", "   ", "    ", " " * 7, " " * 16, " " * 31, " " * 32, " " * 33, " " * 100, "\n", "\n\n", "\n\n\n",
    "\n" * 31, "\n" * 40, "\t", "\t\t", "\t\t\t", "\t" * 40, "\r", "\r\n", "\r\n\r\n", "\n\r", " \n", "\n ", " \n \n ",
    "  \n\n  \n", "a\nb", "a\n\nb", "a \n b", "a\r\nb\r\n", "a  b   c    d     e", "a\tb\t\tc", " a", "  a", "   a", "a ",
    "a  ", "a   ", "\n a", "\n  a", "\t a", " \ta", "a\u00a0b \u00a0c\u00a0 d", "\u00a0\u00a0 x", "\u2003em\u2009thin\u3000wide\u2028line\u2029para\u0085nel",
    "a\x0bb\x0cc", "  1", "   12  3 ", " \n1", "x \n\n\ny  \t z", "\n\n\n\n  indented", " !", "  !", "!  ", " ! \n", "\n!\n\n", ".\n\n\n \n",
    "trailing newline\n", "trailing spaces   \n", "tabs\t\t\n\n\tmore", " " * 5 + "\n" * 3 + "\t" * 2 + "x",
]
CONTROL = [
    "\x00", "a\x00b", "\x00\x00\x00", "\x01\x02\x03\x07\x08", "bell\x07 esc\x1b[31mred\x1b[0m", "\x7f\x80\x9f", "\x04\x06\x13\x14\x16\x1d",
    "\x1c\x1d\x1e\x1f", "\ufffd \ufeff \u200b\u200c\u200d\u200e\u200f\u2060", "\ufdd0\uffff\U0001ffff \U000f0000 \ue000 \U0010ffff", "\u0378 \u0380 unassigned",
    "\u2581 lower block \u2581\u2581 x\u2581y", "\u0120 \u010a \u0100 G with dot",
]
CODE = [
    'fn main() {\n    let xs: Vec<u32> = (0..10).map(|x| x * x).collect();\n    println!("{xs:?}");\n}\n',
    "def fib(n: int) -> int:\n\t'''Return it.'''\n\treturn n if n < 2 else fib(n - 1) + fib(n - 2)  # slow\n",
    "#include <stdio.h>\r\nint main(void) {\r\n\tfor (int i = 0; i != 10; ++i) printf(\"%d\\n\", i);\r\n\treturn 0;\r\n}\r\n",
    "const f = async (a, b) => { await g?.(a ?? `${b}`); /* x */ return a === b ? [...a] : {...b}; };",
    "SELECT name, COUNT(*) AS n FROM users WHERE age >= 18 AND city <> 'Bonn' GROUP BY name HAVING n > 1;",
    "<!DOCTYPE html>\n<html><body><h1 class=\"x\">T</h1><p>a&nbsp;b</p><ul><li>1</li><li><code>x</code></li></ul></body></html>",
    "{\"key\": [1, 2.5, null, true, \"\\u00e9\\n\"], \"nested\": {\"a\": {\"b\": []}}}",
    "for f in *.txt; do echo \"$f\" | sed -e 's/a/b/g' > \"${f%.txt}.out\" 2>&1 || exit 1; done",
    "class A<T extends B> : public C::D { virtual ~A() noexcept = default; template<class U> auto operator<=>(U&&) -> bool; };",
    "    if x:\n        if y:\n            if z:\n                pass\n            else:\n                raise ValueError(f\"{x!r}\")\n",
    "\\begin{align}\n  E &= mc^2 \\\\\n  \\nabla \\cdot \\vec{B} &= 0\n\\end{align}",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n- [ ] todo\n  - **bold** _it_ `code` ~~no~~\n\n```rust\nlet x = 1;\n```\n",
    "main = mapM_ print $ takeWhile (<100) [x | x <- [1..], even x] where go !acc = acc `seq` ()",
    "+++---***///===!!!???...,,,;;;:::\"\"\"''```~~~@@@###$$$%%%^^^&&&|||\\\\\\((()))[[[]]]{{{}}}<<<>>>",
    "a=b;c+=d;e-=f;g*=h;i/=j;k%=l;m&&n||o;!p;~q;r<<s>>t;u<=v>=w;x?y:z",
]
RUNS = [
    "a" * 64, "A" * 65, "ab" * 50, "z" * 300, "." * 100, "=" * 80, "-" * 79, "1" * 100, "\u00e9" * 60, "\u4e2d" * 60, "ha" * 40 + "!" * 20,
    "pneumonoultramicroscopicsilicovolcanoconiosis", "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft",
    "https://" + "/".join(["segment"] * 20), "x" * 47 + "y", "x" * 48 + "y", "x" * 49 + "y",
]
# Spellings of markers: special=False leaves control tokens as text, special=True makes them.
MARKERS = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "a<|endoftext|>b", "<|im_start|><|im_start|>",
    "<|im_", "end|>", "<|im_end|", "<<|im_end|>>", "<bos>text<eos>", "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>", "<repo_name>x<file_sep>", "<|IM_END|>", " <|im_end|> x", "<unk><pad><mask>",
]
# Here the engine differs on purpose from special=False: it never makes these out of plain text.
STRUCTURAL = [
    "<tool_call>\n{\"name\": \"f\"}\n</tool_call>", "<start_of_image>", "[multimodal]", "a</s>b", "<unused0>", "<0x0A>", "x<0x41>y",
]


def samples():
    groups = dict(latin=LATIN, scripts=SCRIPTS, emoji=EMOJI, combining=COMBINING, spaces=SPACES, control=CONTROL, code=CODE, runs=RUNS)
    for group, texts in groups.items():
        for text in texts:
            yield {"group": group, "text": text}
    yield {"group": "document", "text": "\n".join(t for texts in groups.values() for t in texts if "\x00" not in t)}
    for text in MARKERS:
        yield {"group": "markers", "text": text, "parse": True}
    for text in STRUCTURAL:
        yield {"group": "structural", "text": text, "parse": True}


def main():
    import ctypes

    import llama_cpp

    corpus = list(samples())
    (HERE / "corpus.json").write_text(json.dumps(corpus, ensure_ascii=True, indent=0) + "\n")
    for name in MODELS:
        path = pathlib.Path(sys.argv[1]) / f"{name}.gguf"
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        ids = lambda s, special: model.tokenize(s["text"].encode(), add_bos=False, special=special)
        vocab = llama_cpp.llama_model_get_vocab(model.model)
        count = llama_cpp.llama_vocab_n_tokens(vocab)
        ends = [i for i in range(count) if llama_cpp.llama_vocab_is_eog(vocab, i)]
        control = [i for i in range(count) if llama_cpp.llama_vocab_is_control(vocab, i)]

        def piece(i):


            buffer = ctypes.create_string_buffer(256)
            n = llama_cpp.llama_token_to_piece(vocab, i, buffer, 256, 0, False)
            return buffer.raw[: max(n, 0)]

        digest = hashlib.sha256()
        for i in range(count):
            one = piece(i)
            digest.update(len(one).to_bytes(4, "little") + one)
        golden = {
            "made_by": f"make.py, llama-cpp-python {llama_cpp.__version__}",
            "vocab_size": count,
            "ends": ends,
            "control": hashlib.sha256(json.dumps(control).encode()).hexdigest(),
            "pieces": digest.hexdigest(),
            "bos": llama_cpp.llama_vocab_bos(vocab),
            "eos": llama_cpp.llama_vocab_eos(vocab),
            "add_bos": bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
            "text": [ids(s, False) for s in corpus],
            "parse": [ids(s, True) for s in corpus if s.get("parse")],
        }
        lines = ["{"]
        for key, value in golden.items():
            comma = "," if key != "parse" else ""
            if key in ("text", "parse"):
                lines.append(f'"{key}": [\n' + ",\n".join(json.dumps(v, separators=(",", ":")) for v in value) + "]" + comma)
            else:
                lines.append(f'"{key}": {json.dumps(value)}{comma}')
        lines.append("}")
        (HERE / f"{name}.json").write_text("\n".join(lines) + "\n")
        print(name, count, ends, len(control), [len(x) for x in golden["text"]][-1])


if __name__ == "__main__":
    main()
