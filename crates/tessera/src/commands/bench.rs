//! `tessera bench`: the speed of a model on this machine.

use std::io::Write;

use serde::Serialize;
use tessera_measure::machine::Machine;

use super::result;
use crate::Globals;
use crate::bench::cells::Cell;
use crate::bench::report::{Plan, Table, measure, render};
use crate::bench::stdio;
use crate::failure::BadUsage;
use crate::flags::{BackendName, ModelFlags};

/// What `bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path.
    #[arg(short, long, env = "TESSERA_MODEL", default_value = "smollm2")]
    model: String,
    /// Numbers of threads, comma separated (default: 1 and all cores).
    #[arg(short, long, value_delimiter = ',', value_name = "N", env = "TESSERA_THREADS")]
    threads: Vec<usize>,
    /// Only these cells, comma separated: prefill512, decode0, rows16@256, ...
    #[arg(long, value_delimiter = ',', value_name = "CELLS")]
    only: Vec<String>,
    /// Measurements per cell, after one warm-up (default 7; 3 with --quick).
    #[arg(long, value_name = "K")]
    repeat: Option<usize>,
    /// Fewer measurements, fewer tokens, nothing at a context of 4096.
    #[arg(long)]
    quick: bool,
    /// Answer the requests of bench/side_by_side on stdin, one JSON object a line.
    #[arg(long, conflicts_with_all = ["only", "repeat", "quick"])]
    serve_stdio: bool,
    /// What computes: own kernels, or the candle library (in builds with `--features candle`).
    #[arg(long, value_enum, env = "TESSERA_BACKEND", default_value_t = BackendName::Cpu)]
    backend: BackendName,
}

#[derive(Serialize)]
struct Record<'a> {
    engine: &'static str,
    model: &'a str,
    machine: Machine,
    command: String,
    tables: &'a [Table],
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut threads = arguments.threads.clone();
    if threads.is_empty() {
        threads = match arguments.backend {
            // Its number is fixed when the process starts.
            BackendName::Candle => vec![0],
            BackendName::Cpu if cores == 1 => vec![1],
            BackendName::Cpu => vec![1, cores],
        };
    } else if let Some(bad) = threads.iter().find(|&&t| t == 0 || t > 1024) {
        return Err(BadUsage(format!("threads = {bad}: must be between 1 and 1024")).into());
    }
    let open = |threads: usize| {
        let flags = ModelFlags { context: None, threads, backend: arguments.backend };
        flags.open(globals, &arguments.model, None)
    };
    if arguments.serve_stdio {
        let [threads] = threads[..] else {
            let what = "--serve-stdio takes one number of threads: give -t N";
            return Err(BadUsage(what.to_owned()).into());
        };
        return stdio::serve(std::io::stdin().lock(), std::io::stdout(), &|| open(threads));
    }
    let cells = if arguments.only.is_empty() {
        Cell::all(arguments.quick)
    } else {
        let named = arguments.only.iter().map(|name| Cell::parse(name.trim()));
        named.collect::<Result<Vec<_>, _>>().map_err(BadUsage)?
    };
    let repeats = arguments.repeat.unwrap_or(if arguments.quick { 3 } else { 7 });
    if repeats == 0 || repeats > 1000 {
        return Err(BadUsage(format!("repeat = {repeats}: must be between 1 and 1000")).into());
    }
    let plan = Plan { cells: &cells, repeats, steps: if arguments.quick { 16 } else { 64 } };
    let mut tables = Vec::new();
    for count in threads {
        let session = open(count)?;
        session.expect_causal("bench")?;
        tables.push(measure(&session, &plan, &mut |cell| {
            if !globals.quiet {
                let _ = writeln!(std::io::stderr(), "{count} threads: {cell}");
            }
        })?);
    }
    let record = Record {
        engine: concat!("tessera ", env!("CARGO_PKG_VERSION")),
        model: &arguments.model,
        machine: Machine::here(),
        command: std::env::args().skip(1).fold("tessera".to_owned(), |c, a| c + " " + &a),
        tables: &tables,
    };
    let machine = record.machine.line();
    let text = format!("{} on {machine}\n{}", arguments.model, render(&tables));
    result(globals, &record, &text)
}
