//! A method asked for on a command line or in a request may say anything; what is accepted builds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tessera_core::entry::{MethodCall, find};
use tessera_engine::Recipe;
use tessera_methods::ENTRIES;

fuzz_target!(|text: &str| {
    let json = serde_json::from_str(text).ok();
    let calls = [
        MethodCall::parse(ENTRIES, text).ok(),
        json.and_then(|value| MethodCall::from_json(ENTRIES, &value).ok()),
    ];
    for call in calls.into_iter().flatten() {
        let entry = find(ENTRIES, &call.id).expect("an accepted call names a method");
        if let Ok(settings) = entry.resolve(&call.settings) {
            assert!((entry.build)(&settings).is_ok(), "{} {settings:?}", entry.slug);
        }
        let _ = Recipe::resolve(ENTRIES, &[call]);
    }
});
