//! The command with a small random model, end to end.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod toy;

use serde_json::{Value, json};
use toy::{tessera, works};

const RAW: [&str; 4] = ["run", "./toy.gguf", "--raw", "-q"];

fn run(prompt: &str, more: &[&str]) -> String {
    let arguments: Vec<&str> = RAW.iter().chain([&prompt]).chain(more).copied().collect();
    works(&arguments, "")
}

fn lines(out: &str) -> Vec<Value> {
    out.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_seed_repeats_a_text_and_another_changes_it() {
    let seeded = |seed| run("Hello", &["-n", "24", "--temp", "1.5", "--top-k", "0", "-s", seed]);
    assert_eq!(seeded("1"), seeded("1"));
    assert_ne!(seeded("1"), seeded("2"));
    assert!(seeded("1").ends_with('\n'));
}

#[test]
fn threads_do_not_change_a_text() {
    let with = |t| run("Hello", &["-n", "24", "-s", "3", "-t", t]);
    assert_eq!(with("1"), with("2"));
}

#[test]
fn a_prompt_may_come_from_stdin() {
    let greedy = ["-n", "12", "--temp", "0"];
    let given = run("Once upon", &greedy);
    let piped: Vec<&str> = RAW.iter().chain(&greedy).copied().collect();
    assert_eq!(works(&piped, "Once upon\n"), given);
    let dash: Vec<&str> = RAW.iter().chain(&["-"]).chain(&greedy).copied().collect();
    assert_eq!(works(&dash, "Once upon"), given);
    assert_eq!(tessera(&dash, "  \n").code, 2);
}

#[test]
fn json_is_one_object_a_line_from_start_to_summary() {
    let out = run("Hello", &["-n", "8", "-s", "4", "--json"]);
    let lines = lines(&out);
    let names: Vec<&str> = lines.iter().map(|l| l["event"].as_str().unwrap()).collect();
    assert_eq!((names[0], names[names.len() - 1]), ("started", "done"));
    assert!(names.contains(&"prefill_done") && names.contains(&"finished"));
    assert_eq!(lines[0]["seed"], json!(4));
    assert_eq!(lines[0]["methods"], json!([]));
    let done = &lines[names.len() - 1];
    let pieces = lines.iter().filter(|l| l["event"] == "committed");
    let text: String = pieces.map(|l| l["text"].as_str().unwrap()).collect();
    assert_eq!(done["choices"][0]["text"], json!(text));
    assert_eq!(text + "\n", run("Hello", &["-n", "8", "-s", "4"]));
    assert_eq!(done["stats"]["prompt_tokens"], json!(5));
}

#[test]
fn the_plain_method_is_the_plain_run() {
    let plain = run("Hello", &["-n", "16", "-s", "4"]);
    for name in ["none", "plain", "none:"] {
        assert_eq!(run("Hello", &["-n", "16", "-s", "4", "--method", name]), plain);
    }
}

#[test]
fn a_draft_model_changes_the_work_and_not_the_text() {
    let plain = run("Hello", &["-n", "24", "-s", "4"]);
    for method in ["draft-model:budget=3", "dyspec", "dyspec:form=budget"] {
        let more = ["-n", "24", "-s", "4", "--draft-model", "./toy.gguf", "--method", method];
        assert_eq!(run("Hello", &more), plain, "{method}");
        let events = lines(&run("Hello", &[&more[..], &["--json"]].concat()));
        assert_eq!(events[0]["engine"]["draft_model"], json!("./toy.gguf"));
        let stats = &events[events.len() - 1]["stats"];
        assert!(stats["accepted_tokens"].as_u64() > Some(0), "{method}: {stats}");
    }
}

#[test]
fn a_stop_text_ends_the_answer_before_itself() {
    let whole = run("Hello", &["-n", "24", "-s", "9"]);
    let mut characters = whole.char_indices().skip(6);
    let (from, _) = characters.next().unwrap();
    let (to, _) = characters.nth(1).unwrap();
    let stop = &whole[from..to];
    let cut = whole.find(stop).unwrap();
    let stopped = run("Hello", &["-n", "24", "-s", "9", "--stop", stop]);
    assert_eq!(stopped.trim_end_matches('\n'), whole[..cut].trim_end_matches('\n'));
}

#[test]
fn statistics_go_to_stderr_and_flags_come_from_the_environment_too() {
    let ran = tessera(&["run", "./toy.gguf", "Hello", "--raw", "-n", "6", "-s", "77"], "");
    assert_eq!((ran.code, ran.err.lines().count()), (0, 1), "{}", ran.err);
    for word in ["prompt 5 tokens", "tok/s", "passes", "seed 77"] {
        assert!(ran.err.contains(word), "{}", ran.err);
    }
}

#[test]
fn the_template_shapes_a_prompt_unless_it_is_raw() {
    let tokens = |more: &[&str]| {
        let mut arguments = vec!["run", "./toy.gguf", "hi", "-n", "1", "--json"];
        arguments.extend(more);
        lines(&works(&arguments, ""))[0]["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens(&["--raw"]), 2);
    // <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n
    assert_eq!(tokens(&[]), 1 + 5 + 2 + 1 + 1 + 1 + 10);
    assert_eq!(tokens(&["--system", "be"]), 21 + 1 + 7 + 2 + 1 + 1);
    // A spelling of a control token in the prompt is text.
    let mut arguments = vec!["run", "./toy.gguf", "<|im_end|>", "-n", "1", "--json", "--raw"];
    let raw = lines(&works(&arguments, ""))[0]["prompt_tokens"].clone();
    assert_eq!(raw, json!(10));
    arguments.pop();
    let shaped = lines(&works(&arguments, ""))[0]["prompt_tokens"].clone();
    assert_eq!(shaped, json!(1 + 5 + 10 + 1 + 1 + 1 + 10));
}

#[test]
fn a_chat_reads_lines_and_commands() {
    let script =
        "hello\n/set seed 5\n/stats\n/hlep\nagain\\\nand again\n/clear\nhello\n/quit\nnever\n";
    let ran = tessera(&["chat", "./toy.gguf", "-n", "6", "-s", "5", "--temp", "0"], script);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("did you mean /help"), "{}", ran.err);
    assert!(ran.err.contains("statistics are off"), "{}", ran.err);
    // One line of statistics for the first answer only.
    assert_eq!(ran.err.matches("passes").count(), 1, "{}", ran.err);

    let answers = |script: &str| {
        let arguments = ["chat", "./toy.gguf", "-n", "6", "-s", "5", "--json", "-q"];
        let done = lines(&works(&arguments, script));
        let done = done.into_iter().filter(|l| l["event"] == "done");
        done.map(|l| (l["choices"].clone(), l["stats"].clone())).collect::<Vec<_>>()
    };
    let three = answers("hello\nmore\n/clear\nhello\n");
    assert_eq!(three.len(), 3);
    assert_eq!(three[0].0, three[2].0, "a cleared conversation begins anew");
    let reused = |i: usize| three[i].1["reused_tokens"].as_u64().unwrap();
    assert_eq!(reused(0), 0);
    assert!(reused(1) > 20, "the second turn reuses the first: {}", three[1].1);
}

#[test]
fn bench_prints_a_table_or_a_record() {
    let cells = ["--only", "prefill16,decode0,rows2@8", "--repeat", "2", "-t", "1,2", "-q"];
    let text: Vec<&str> = ["bench", "-m", "./toy.gguf"].iter().chain(&cells).copied().collect();
    let table = works(&text, "");
    assert!(table.contains("1 thread ·") && table.contains("2 threads ·"), "{table}");
    assert_eq!(table.matches("tok/s").count(), 4, "{table}");
    let json: Vec<&str> = text.iter().chain(&["--json"]).copied().collect();
    let record: Value = serde_json::from_str(&works(&json, "")).unwrap();
    let cell = &record["tables"][1]["cells"][1];
    assert_eq!((&cell["cell"], &cell["threads"]), (&json!("decode0"), &json!(2)));
    assert!(cell["share_of_floor"].as_f64().unwrap() > 0.0);
    assert!(record["tables"][0]["cells"][0]["share_of_floor"].is_null());
}

#[test]
fn bench_serves_the_side_by_side_protocol() {
    let ids: Vec<u32> = (0..64).collect();
    let requests = [
        json!({"op": "prefill", "count": 1}),
        json!({"op": "load", "context": 64}),
        json!({"op": "tokens", "ids": ids}),
        json!({"op": "prefill", "count": 16}),
        json!({"op": "decode", "context": 8, "count": 4}),
        json!({"op": "rows", "context": 8, "count": 16}),
        json!({"op": "rows", "context": 60, "count": 16}),
        json!({"op": "load", "context": 1_000_000}),
        json!({"op": "quit"}),
    ];
    let input: String = requests.iter().map(|r| format!("{r}\n")).collect();
    let replies = lines(&works(&["bench", "--serve-stdio", "-m", "./toy.gguf", "-t", "1"], &input));
    assert_eq!(replies.len(), 8);
    for bad in [0, 6, 7] {
        assert!(replies[bad]["error"].is_string(), "{}", replies[bad]);
    }
    assert_eq!(replies[1]["vocab"], json!(258));
    assert_eq!(replies[2], json!({"count": 64}));
    assert!((3..6).all(|i| replies[i]["ms"].as_f64().unwrap() > 0.0), "{replies:?}");
}
