//! Decoding after a long prompt on a real model, dense and with `fasa` reading an eighth of the rows,
//! for 1 and 16 sequences: `cargo bench -p tessera-runtime --bench sparse -- [MODEL] [TOKENS] [SETTINGS]`
//! (settings of `fasa`, such as `pairs=8`).
//!
//! Prints milliseconds a step (median), the gain, and what the bytes that a step reads predict. With
//! `TESSERA_BENCH_WAIT=FILE` it waits after the prompt until that file exists, so that the machine
//! can be made quiet for the part that is timed.

#![allow(clippy::expect_used, clippy::print_stdout)]

use std::path::Path;
use std::time::{Duration, Instant};

use tessera_core::entry::Method;
use tessera_core::{
    KvStore, Lent, Pass, Position, Reduce, ReduceContext, Reveal, RowsOut, Segment, Sites,
};
use tessera_runtime::{METHODS, MethodCall, Options, Recipe, Session};

const TEXT: &str = include_str!("../../../bench/fidelity/prose.txt");
const STEPS: usize = 9;
const SHARE: usize = 8;

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let model = arguments.first().map_or("qwen2.5-coder:0.5b", String::as_str);
    let rows: usize = arguments.get(1).map_or(8192, |n| n.parse().expect("a number of tokens"));
    let session = Session::open(model, &Options::default()).expect("a model");
    let backbone = session.backbone();
    let text: Vec<u32> = session.vocabulary().encode(TEXT);
    let tokens: Vec<u32> = text.iter().copied().cycle().take(rows).collect();
    let mut sequence = backbone
        .new_cache(tessera_core::CacheOptions { capacity: rows + 64, ..Default::default() })
        .expect("memory");
    let mut reveal = Reveal::new();
    let start = Instant::now();
    for (i, chunk) in tokens.chunks(512).enumerate() {
        let positions: Vec<Position> = (i as Position * 512..).take(chunk.len()).collect();
        let mut segments = [Segment {
            rows_out: RowsOut::None,
            ..Segment::causal(chunk, &positions, &mut *sequence)
        }];
        backbone.forward(&mut Pass::new(&mut segments), &mut reveal).expect("a pass");
    }
    println!(
        "{} {}, {} threads: {rows} tokens in {:.0} s",
        session.info().name,
        session.info().detail,
        session.info().threads,
        start.elapsed().as_secs_f64()
    );
    let call = MethodCall::parse(METHODS, &text_of(rows, arguments.get(2))).expect("fasa");
    let recipe = Recipe::resolve(METHODS, &[call]).expect("a recipe");
    let recipe = session.prepared(&recipe).expect("a calibration");
    let Some(Method::Reduce(mut policy)) = recipe.build().expect("a policy").pop() else { return };
    let target = Lent { backbone, cache: &mut *sequence, position: rows as Position };
    let mut context =
        ReduceContext { prompt: &tokens, seed: 0, target, vocabulary: session.vocabulary() };
    policy.after_prefill(&mut context).expect("nothing to evict");
    if let Ok(file) = std::env::var("TESSERA_BENCH_WAIT") {
        println!("waiting for {file}");
        while !Path::new(&file).exists() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let spec = backbone.spec();
    let weights = session.info().bytes_per_token as f64;
    let dense_bytes = session.cache_bytes_read(rows) as f64;
    // The columns of all keys that rank them, and the chosen rows.
    let ranked_by: usize = match policy.decode_sites() {
        Some(sites) => (0..spec.layers)
            .filter_map(|l| sites.columns(0, l))
            .flat_map(|heads| heads.iter().map(Vec::len))
            .sum(),
        None => 0,
    };
    let all_rows = (rows * spec.layers * spec.kv_heads * spec.head_dim * 2) as f64;
    let few_bytes = (rows * ranked_by * 2) as f64 + 2.0 * all_rows / SHARE as f64;
    println!("sequences |  dense ms   fasa ms |   gain  by bytes | first fasa step ms");
    for count in [1, 16] {
        let mut caches: Vec<Box<dyn KvStore>> =
            (0..count).map(|_| sequence.fork().expect("memory")).collect();
        let dense = steps(&session, &mut caches, &text, None, &mut reveal);
        let fasa = steps(&session, &mut caches, &text, Some(&mut *policy), &mut reveal);
        let (d, f) = (median(&dense[1..]), median(&fasa[1..]));
        let n = count as f64;
        let predicted = (weights + n * dense_bytes) / (weights + n * few_bytes);
        println!("{count:9} | {d:9.2} {f:9.2} | {:5.2}x {predicted:8.2}x | {:.0}", d / f, fasa[0]);
    }
}

/// `fasa` over its share of the rows, and what was asked for besides.
fn text_of(rows: usize, settings: Option<&String>) -> String {
    let more = settings.map_or_else(String::new, |s| format!(",{s}"));
    format!("fasa:budget={}{more}", rows / SHARE)
}

/// Milliseconds of each step.
fn steps(
    session: &Session,
    caches: &mut [Box<dyn KvStore>],
    text: &[u32],
    mut policy: Option<&mut dyn Reduce>,
    reveal: &mut Reveal,
) -> Vec<f64> {
    let mut times = Vec::new();
    for step in 0..STEPS {
        let start = Instant::now();
        let position = [caches[0].table().next_position()];
        let inputs: Vec<[u32; 1]> =
            (0..caches.len()).map(|i| [text[(step * 31 + i * 7) % text.len()]]).collect();
        let mut segments: Vec<Segment<'_>> = caches
            .iter_mut()
            .zip(&inputs)
            .map(|(cache, input)| Segment::causal(input, &position, &mut **cache))
            .collect();
        let mut pass = Pass::new(&mut segments);
        let mut sites: Option<&mut dyn Sites> = match policy.as_deref_mut() {
            Some(policy) => policy.decode_sites(),
            None => None,
        };
        pass.sites = match sites.as_mut() {
            Some(sites) => Some(&mut **sites),
            None => None,
        };
        session.backbone().forward(&mut pass, reveal).expect("a pass");
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times
}

fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
