//! Twenty thousand damaged GGUF files, and every truncation of a good one: no panic, bounded
//! memory, and every error names the field. The allocator counts, per thread.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod tiny;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use tessera_kernels::WeightType;
use tessera_model::gguf::{Gguf, GgufWriter, ValueType};
use tessera_model::store::testing::find_test_model;
use tessera_model::{Architecture, FileError, FileSummary, GgufWeights, WeightSource};
use tiny::{Rng, Scratch, model};

struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn grow(bytes: usize) {
    // During a thread's end there is nothing left to count in.
    let _ = LIVE.try_with(|live| {
        live.set(live.get().wrapping_add(bytes));
        let now = live.get();
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

fn shrink(bytes: usize) {
    let _ = LIVE.try_with(|live| live.set(live.get().wrapping_sub(bytes)));
}

// SAFETY: every request goes to the system's allocator unchanged; the counters are thread-local
// cells that allocate nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promise that `at` came from here with this layout is passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may be alive while the bytes are moved.
        grow(size);
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes allowed beyond the file's own length.
const ROOM: usize = 64 << 20;

/// Runs `f` and returns the most bytes it held at once.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let out = f();
    (out, PEAK.get() - before)
}

/// Names the case when a test panics.
struct Case(u64, &'static str);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("failing case: seed {} of {}", self.0, self.1);
        }
    }
}

/// Everything the engine may do with a file, errors welcome; returns the first one met on the way
/// to a model.
fn use_all(bytes: Vec<u8>) -> Option<FileError> {
    let file = match Gguf::from_bytes(bytes, "m.gguf") {
        Ok(file) => file,
        Err(error) => return Some(error),
    };
    let summary = FileSummary::of_gguf(&file);
    assert!(summary.tensors == file.tensors().len());
    let meta = file.metadata();
    for (key, ty, elements) in meta.keys() {
        // Each accessor either has the value's type or says that it has not.
        let strings = meta.get_arr_str(key).map(|array| array.map(|a| a.iter().count()));
        match elements {
            Some((ValueType::String, count)) => {
                assert!(strings.is_err() || strings.is_ok_and(|n| n == Some(count as usize)));
            }
            _ => assert!(strings.is_err()),
        }
        assert!(meta.get_str(key).is_err() || ty == ValueType::String);
        assert!(meta.get_bool(key).is_err() || ty == ValueType::Bool);
        let _ = (meta.get_u32(key), meta.get_u64(key), meta.get_f32(key));
        let _ = (meta.get_arr_i32(key), meta.get_arr_u32(key));
        let _ = (meta.get_arr_f32(key), meta.get_arr_bool(key));
    }
    let mut out = Vec::new();
    for tensor in file.tensors() {
        let info = file.read_tensor(&tensor.name, &mut out).unwrap();
        assert_eq!(out.len() as u64, info.bytes());
        assert_eq!(info, tensor);
    }
    match GgufWeights::new(file) {
        Ok(weights) => {
            let p = weights.hyper_params();
            assert!(p.heads.is_multiple_of(p.kv_heads) && p.layers == p.local.len());
            weights.read_f32("output_norm.weight").unwrap();
            None
        }
        Err(error) => Some(error),
    }
}

/// An error is one line that starts with the file and names a place in it.
fn check_error(error: &FileError) {
    let (line, field) = (error.to_string(), error.field());
    assert!(line.starts_with("m.gguf: ") && !line.contains('\n'), "{line}");
    assert!(line.contains(field) && line.len() < 2000, "{line}");
    let places = [
        "magic",
        "version",
        "tensor count",
        "metadata count",
        "metadata key number ",
        "metadata key \"",
        "name of tensor number ",
        "tensor \"",
    ];
    assert!(places.iter().any(|place| field.starts_with(place)), "{line}");
}

/// Positions in a good file where a number steers the parser: (position, width in bytes).
fn steering(bytes: &[u8]) -> Vec<(usize, usize)> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (tensors, keys) = (u64_at(8), u64_at(16));
    let mut out = vec![(4, 4), (8, 8), (16, 8)];
    let mut at = 24;
    for _ in 0..keys {
        out.push((at, 8));
        at += 8 + u64_at(at);
        out.push((at, 4));
        let ty = u32_at(at);
        at += 4;
        match ty {
            8 => {
                out.push((at, 8));
                at += 8 + u64_at(at);
            }
            9 => {
                out.extend([(at, 4), (at + 4, 8)]);
                let (element, count) = (u32_at(at), u64_at(at + 4));
                at += 12;
                for _ in 0..count {
                    if element == 8 {
                        out.push((at, 8));
                        at += 8 + u64_at(at);
                    } else {
                        at += if element == 7 { 1 } else { 4 };
                    }
                }
            }
            7 => at += 1,
            _ => {
                out.push((at, 4));
                at += 4;
            }
        }
    }
    for _ in 0..tensors {
        out.push((at, 8));
        at += 8 + u64_at(at);
        out.push((at, 4));
        let rank = u32_at(at);
        at += 4;
        out.extend((0..rank).map(|i| (at + 8 * i, 8)));
        at += 8 * rank;
        out.extend([(at, 4), (at + 4, 8)]);
        at += 12;
    }
    out
}

/// A damaged copy of `good`, whose head is `head` bytes long.
fn damage(good: &[u8], head: usize, steer: &[(usize, usize)], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=rng.below(3) {
        // Nearly always in the head: the rest is weights, for which any bytes will do.
        let head = head.min(bytes.len()).max(1);
        let at = rng.below(head);
        match rng.below(8) {
            // Flipped bits.
            0 => (0..=rng.below(8)).for_each(|_| {
                let at = rng.below(head);
                bytes[at] ^= 1 << rng.below(8);
            }),
            // A number that steers the parser, set to an extreme.
            1..=3 => {
                let (at, width) = steer[rng.below(steer.len())];
                let len = good.len() as u64;
                let extremes = [
                    0,
                    1,
                    2,
                    3,
                    u64::MAX,
                    u64::MAX - 7,
                    i64::MAX as u64,
                    1 << 63,
                    1 << 61,
                    u32::MAX.into(),
                    1 << 32,
                    1 << 31,
                    len,
                    len - 1,
                    len - at as u64,
                    rng.next(),
                    rng.next() % 16,
                    rng.next() % 4096,
                ];
                let value = extremes[rng.below(extremes.len())].to_le_bytes();
                if let Some(place) = bytes.get_mut(at..at + width) {
                    place.copy_from_slice(&value[..width]);
                }
            }
            // A piece of the file over another place, its length kept.
            4 => {
                let (from, n) = (rng.below(head), 1 + rng.below(64));
                let n = n.min(bytes.len() - from).min(bytes.len() - at);
                bytes.copy_within(from..from + n, at);
            }
            // A piece of the file put in twice: keys and tensors double.
            5 => {
                let end = (at + 1 + rng.below(200)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(end..end, piece);
                if rng.below(2) == 0 && bytes.len() > 24 {
                    let count = if rng.below(2) == 0 { 8 } else { 16 };
                    bytes[count] = bytes[count].wrapping_add(1);
                }
            }
            // A piece taken out.
            6 => {
                let end = (at + 1 + rng.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            // Cut off.
            _ => {
                let keep = rng.below(bytes.len());
                bytes.truncate(keep.max(1));
            }
        }
    }
    bytes
}

/// Length of the head: where the first tensor's data begins.
fn head_len(good: &[u8]) -> usize {
    let steer = steering(good);
    let (at, width) = steer[steer.len() - 1];
    (at + width).next_multiple_of(32)
}

/// Damages `good` over and over; returns how many copies still opened and were whole models.
fn batter(good: &[u8], seeds: std::ops::Range<u64>, what: &'static str) -> usize {
    let (steer, head) = (steering(good), head_len(good));
    let mut fine = 0;
    for seed in seeds {
        let case = Case(seed, what);
        let bytes = damage(good, head, &steer, &mut Rng(seed));
        let len = bytes.len();
        let (error, peak) = peak_of(|| use_all(bytes));
        assert!(peak < ROOM + len, "held {peak} bytes for a file of {len}");
        match error {
            Some(error) => check_error(&error),
            None => fine += 1,
        }
        drop(case);
    }
    fine
}

#[test]
fn incident_1_twenty_thousand_damaged_files() {
    for (i, arch) in Architecture::ALL.into_iter().enumerate() {
        let good = model(arch).to_bytes().unwrap();
        assert!(use_all(good.clone()).is_none());
        let first = i as u64 * 4000;
        let fine = batter(&good, first..first + 4000, arch.name());
        // Damage that changes nothing of weight is some; damage that nothing notices is a fault.
        assert!((1..1800).contains(&fine), "{fine} of 4000 damaged files passed");
    }
}

#[test]
fn incident_1_damaged_heads_of_a_real_file() {
    let Some(path) = find_test_model("smollm2") else { return };
    // Its whole metadata, vocabulary included, with tensors of no size.
    let file = Gguf::open(&path).unwrap();
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&file, |_| true);
    for tensor in file.tensors() {
        let shape = tessera_model::gguf::Shape::new(&[32]).unwrap();
        writer.tensor(&tensor.name, WeightType::Q8_0, shape, vec![0; 34]);
    }
    let good = writer.to_bytes().unwrap();
    batter(&good, 0..40, "smollm2");
}

#[test]
fn incident_1_files_that_claim_much_cost_little() {
    // 64 bytes that promise the world, in each place that could.
    let claims = [
        tiny::Raw::new(u64::MAX, u64::MAX).bytes(&[0; 40]).0,
        tiny::Raw::new(0, 1).u64(1 << 62).bytes(&[b'k'; 32]).0,
        tiny::Raw::new(0, 1).text("k").u32(8).u64(1 << 62).bytes(&[0; 20]).0,
        tiny::Raw::new(0, 1).text("k").u32(9).u32(10).u64(1 << 61).bytes(&[0; 16]).0,
        tiny::Raw::new(1, 0).entry("w", &[1 << 60], 0, 0).0,
    ];
    for bytes in claims {
        let (error, peak) = peak_of(|| use_all(bytes));
        check_error(&error.unwrap());
        assert!(peak < 1 << 20, "{peak}");
    }
}

#[test]
fn incident_4_every_truncation_is_an_error() {
    let good = model(Architecture::Llama).to_bytes().unwrap();
    let file = Gguf::from_bytes(good.clone(), "m.gguf").unwrap();
    let last = file.tensor("output_norm.weight").unwrap();
    // The last tensor needs no padding, so every byte of the file counts.
    assert_eq!(last.bytes() % 32, 0);
    for len in 0..good.len() {
        let error = Gguf::from_bytes(good[..len].to_vec(), "m.gguf").unwrap_err();
        check_error(&error);
    }
    // Through the file system too, at fewer lengths.
    let scratch = Scratch::new("truncations");
    for len in (0..good.len()).step_by(997) {
        let path = scratch.file("m.gguf", &good[..len]);
        assert!(Gguf::open(&path).is_err(), "{len}");
    }
}
