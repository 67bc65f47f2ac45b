//! A predicate's process may answer anything; what is accepted is one of three judgements.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tessera_methods::predicate::answer;

fuzz_target!(|line: &str| {
    if let Ok(judgement) = answer(line) {
        assert!(judgement.allowed || !judgement.complete);
        assert!(line.ends_with('\n'));
    }
});
