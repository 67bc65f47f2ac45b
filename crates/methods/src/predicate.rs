//! A predicate in another process: a command that answers one line per question.
//!
//! The protocol, one line each way:
//!
//! - question: `{"hex":"...","text":"..."}`, the beginning of a text as lower-case hexadecimal bytes,
//!   and as text in which bytes that are no character are U+FFFD;
//! - answer: `false` (no allowed text begins so), `true` (some do, but this is none yet) or `complete`
//!   (this is one). JSON says the same: `{"allowed":true,"complete":false}`.
//!
//! Where `false` was said, no longer text may be allowed. The command is split into words as a shell
//! does, without a shell; it is killed when the run is over. Time without an answer, an answer that is
//! none, and an end before the run's are errors.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tessera_core::{Error, Judgement, Predicate, Result};

/// Longest answer that is read, in bytes.
const LONGEST: u64 = 4096;

/// A command that judges texts.
#[derive(Debug)]
pub struct Process {
    command: String,
    seconds: f64,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<std::io::Result<String>>,
    /// Why it can answer no more.
    fault: Option<String>,
}

impl Process {
    /// Starts `command`; an answer may take `seconds`.
    ///
    /// # Errors
    /// [`Error::Constraint`] for a command that is none or does not start.
    pub fn start(command: &str, seconds: f64) -> Result<Self> {
        let fault = |what: String| {
            let what = format!("predicate `{command}`: {what}. Next: run it by hand");
            Error::constraint(what)
        };
        let words = words(command).map_err(|what| fault(what.to_owned()))?;
        let Some((program, arguments)) = words.split_first() else {
            return Err(fault("is empty".to_owned()));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| fault(format!("cannot be started: {e}")))?;
        let (Some(questions), Some(out)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(fault("has no input or output".to_owned()));
        };
        let (tell, answers) = sync_channel(1);
        std::thread::spawn(move || {
            let mut out = BufReader::new(out);
            loop {
                let mut line = String::new();
                let read = (&mut out).take(LONGEST).read_line(&mut line).map(|_| line);
                let over = read.as_ref().map_or(true, |line| !line.ends_with('\n'));
                if tell.send(read).is_err() || over {
                    return;
                }
            }
        });
        let running = Running { child, questions, answers, fault: None };
        Ok(Self { command: command.to_owned(), seconds, running: Mutex::new(running) })
    }
}

impl Predicate for Process {
    fn judge(&self, text: &[u8]) -> Result<Judgement> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = match running.fault.clone() {
            Some(fault) => Err(fault),
            None => running.ask(&question(text), self.seconds),
        };
        asked.map_err(|fault| {
            let what = format!("predicate `{}`: {fault}. Next: run it by hand", self.command);
            running.fault = Some(fault);
            Error::constraint(what)
        })
    }
}

impl Running {
    fn ask(&mut self, question: &str, seconds: f64) -> std::result::Result<Judgement, String> {
        let sent = writeln!(self.questions, "{question}").and_then(|()| self.questions.flush());
        if sent.is_err() {
            return Err(self.ended());
        }
        match self.answers.recv_timeout(Duration::from_secs_f64(seconds)) {
            Ok(Ok(line)) if line.is_empty() => Err(self.ended()),
            Ok(Ok(line)) => answer(&line),
            Ok(Err(error)) => Err(format!("its answer cannot be read: {error}")),
            Err(RecvTimeoutError::Timeout) => Err(format!("gave no answer within {seconds} s")),
            Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }

    /// That it is over, and how, if it says so soon.
    fn ended(&mut self) -> String {
        for _ in 0..50 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return format!("ended before the run did ({status})");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        "closed its input or output before the run was over".to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A question's line, without its end.
fn question(text: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * text.len());
    for byte in text {
        hex.extend(
            [byte >> 4, byte & 15].map(|d| char::from_digit(u32::from(d), 16).unwrap_or('0')),
        );
    }
    json!({ "hex": hex, "text": String::from_utf8_lossy(text) }).to_string()
}

/// Reads an answer's line.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn answer(line: &str) -> std::result::Result<Judgement, String> {
    const NO: Judgement = Judgement { allowed: false, complete: false };
    const YES: Judgement = Judgement { allowed: true, complete: false };
    const COMPLETE: Judgement = Judgement { allowed: true, complete: true };
    let wrong = || {
        let shown: String = line.trim_end().chars().take(60).collect();
        format!("answered {shown:?}, which is none of false, true and complete")
    };
    if !line.ends_with('\n') {
        return Err(format!("{} (the line has no end)", wrong()));
    }
    match line.trim() {
        "false" => return Ok(NO),
        "true" => return Ok(YES),
        "complete" | "\"complete\"" => return Ok(COMPLETE),
        _ => {}
    }
    let Ok(Value::Object(map)) = serde_json::from_str(line) else { return Err(wrong()) };
    let known = map.keys().all(|k| k == "allowed" || k == "complete");
    let said = |name: &str| map.get(name).map(Value::as_bool);
    match (known, said("allowed"), said("complete")) {
        (true, Some(Some(true)), Some(Some(true))) => Ok(COMPLETE),
        (true, Some(Some(true)), Some(Some(false)) | None) => Ok(YES),
        (true, Some(Some(false)), Some(Some(false)) | None) => Ok(NO),
        _ => Err(wrong()),
    }
}

/// Splits a command into words: quotes keep spaces, a backslash the next character.
fn words(command: &str) -> std::result::Result<Vec<String>, &'static str> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = command.chars();
    while let Some(c) = characters.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => match characters.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err("ends with a backslash"),
            },
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("has a quote without an end");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_or_refused() {
        let said = |line: &str| answer(&format!("{line}\n")).map(|j| (j.allowed, j.complete));
        assert_eq!(said("false"), Ok((false, false)));
        assert_eq!(said(" true\r"), Ok((true, false)));
        assert_eq!(said("complete"), Ok((true, true)));
        assert_eq!(said(r#"{"allowed": true, "complete": true}"#), Ok((true, true)));
        assert_eq!(said(r#"{"allowed": false}"#), Ok((false, false)));
        for wrong in [
            "",
            "yes",
            "1",
            "{}",
            "[true]",
            r#"{"allowed":1}"#,
            r#"{"complete":true}"#,
            r#"{"allowed":false,"complete":true}"#,
            r#"{"allowed":true,"more":1}"#,
        ] {
            assert!(said(wrong).unwrap_err().contains("none of false, true"), "{wrong}");
        }
        assert!(answer("true").unwrap_err().contains("no end"));
    }

    #[test]
    fn commands_are_split_as_a_shell_does() {
        let split = |c| words(c).unwrap();
        assert_eq!(split(" a  'b c' \"d\\\"e\" f\\ g ''"), ["a", "b c", "d\"e", "f g", ""]);
        assert!(words("a 'b").is_err() && words("a\\").is_err());
        assert!(Process::start("  ", 1.0).unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn questions_are_one_line_of_json() {
        let line = question(&[b'a', b'\n', 0xc3]);
        assert_eq!(line, "{\"hex\":\"610ac3\",\"text\":\"a\\n\u{fffd}\"}");
    }

    #[cfg(unix)]
    #[test]
    fn a_process_answers_and_its_faults_are_errors() {
        let script = "while read line; do case \"$line\" in *78*) echo false;; *) echo complete;; esac; done";
        let process = Process::start(&format!("sh -c '{script}'"), 5.0).unwrap();
        assert_eq!(process.judge(b"x").unwrap(), Judgement { allowed: false, complete: false });
        assert_eq!(process.judge(b"").unwrap(), Judgement { allowed: true, complete: true });
        let fault = |command: &str, seconds| {
            let process = Process::start(command, seconds)?;
            process.judge(b"a")?;
            process.judge(b"b").map(|_| ())
        };
        for (command, said) in [
            ("sh -c 'exit 3'", "ended before"),
            ("sh -c 'read l; echo true; exit 0'", "ended before"),
            ("sh -c 'read l; echo perhaps; read l'", "perhaps"),
            ("sh -c 'read l; printf true'", "no end"),
            ("sleep 60", "no answer within 0.2 s"),
            ("no-such-command-anywhere", "cannot be started"),
        ] {
            let error = fault(command, 0.2).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("Next:"), "{command}: {error}");
        }
    }
}
