//! Stop strings and characters in a stream, by their definitions, on texts of every cut.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use proptest::prelude::*;
use tessera_core::text::{StopMatcher, StreamDecoder};

/// What a piece of text releases, and the stop string it completes.
fn push(matcher: &mut StopMatcher, text: &str) -> (String, Option<usize>) {
    let mut out = String::new();
    let stop = matcher.push(text, &mut out);
    (out, stop)
}

#[test]
fn pieces_of_a_character_are_held_back_until_they_are_certain() {
    let mut stream = StreamDecoder::new();
    let mut push = |bytes: &[u8]| {
        let mut out = String::new();
        stream.push(bytes, &mut out);
        out
    };
    assert_eq!(push(b"a\xf0\x9f"), "a");
    assert_eq!(push(b"\xa6"), "");
    assert_eq!(push(b"\x80b"), "🦀b");
    assert_eq!(push(b"\xe2\x82"), "");
    assert_eq!(push(b"x\xff\xc3"), "\u{fffd}x\u{fffd}");
    let mut end = String::new();
    stream.finish(&mut end);
    stream.finish(&mut end);
    assert_eq!(end, "\u{fffd}");
}

#[test]
fn stop_strings_are_found_across_pieces() {
    let mut stop = StopMatcher::new(["User:", "\n\n"]).unwrap();
    assert_eq!(push(&mut stop, "Hello U"), ("Hello ".into(), None));
    assert_eq!(push(&mut stop, "ni\n"), ("Uni".into(), None));
    assert_eq!(push(&mut stop, "Use"), ("\n".into(), None));
    assert_eq!(push(&mut stop, "r: x"), (String::new(), Some(0)));
    assert_eq!(push(&mut stop, "a\n"), ("a".into(), None));
    let mut end = String::new();
    stop.finish(&mut end);
    assert_eq!(end, "\n");
    // Falls back twice inside itself before it matches.
    let mut again = StopMatcher::new(["aabaaac"]).unwrap();
    assert_eq!(push(&mut again, "aabaaabaaac"), ("aaba".into(), Some(0)));
    let mut longer = StopMatcher::new(["b", "ab"]).unwrap();
    assert_eq!(push(&mut longer, "xab"), ("x".into(), Some(1)));
}

#[test]
fn every_short_stop_string_is_found_in_every_short_text() {
    let words = |len: u32| {
        (0..1u32 << len).map(move |bits| -> String {
            (0..len).map(|at| if bits >> at & 1 == 0 { 'a' } else { 'b' }).collect()
        })
    };
    for stop in (1..=6).flat_map(words) {
        for text in words(10) {
            let got = push(&mut StopMatcher::new([stop.as_str()]).unwrap(), &text);
            match text.find(&stop) {
                Some(at) => assert_eq!(got, (text[..at].into(), Some(0))),
                None => {
                    // Held back: the longest end of the text that starts the stop string.
                    let held = (0..stop.len()).rev().find(|n| text.ends_with(&stop[..*n]));
                    let shown = &text[..text.len() - held.unwrap_or(0)];
                    assert_eq!(got, (shown.into(), None), "{stop} in {text}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn streamed_pieces_are_the_lossy_text(chunks in prop::collection::vec(
        prop::collection::vec(prop_oneof![any::<u8>(), 0x80u8..0xc0, Just(0xe2), Just(0xf0)], 0..5), 0..20)) {
        let (mut stream, mut text) = (StreamDecoder::new(), String::new());
        for chunk in &chunks {
            stream.push(chunk, &mut text);
        }
        stream.finish(&mut text);
        let whole = chunks.concat();
        prop_assert_eq!(text, String::from_utf8_lossy(&whole));
    }

    #[test]
    fn stops_are_where_the_first_is_complete(
        stops in prop::collection::vec("[abé]{1,4}", 0..4),
        pieces in prop::collection::vec("[abcé]{0,5}", 0..8),
    ) {
        let text = pieces.concat();
        let ends = stops.iter().enumerate().flat_map(|(n, stop)| {
            text.match_indices(stop.as_str()).next().map(|(at, _)| (at + stop.len(), at, n))
        });
        let want = ends.min().map(|(_, start, stop)| (text[..start].to_owned(), stop));
        let mut matcher = StopMatcher::new(stops.iter().map(String::as_str)).unwrap();
        let (mut shown, mut got) = (String::new(), None);
        for piece in &pieces {
            if let Some(stop) = matcher.push(piece, &mut shown) {
                got = Some((shown.clone(), stop));
                break;
            }
        }
        if got.is_none() {
            matcher.finish(&mut shown);
            prop_assert_eq!(&shown, &text);
        }
        prop_assert_eq!(got, want);
    }
}
