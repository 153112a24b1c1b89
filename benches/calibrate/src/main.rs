//! What this machine can do at best: the limits that every benchmark row is held against.
//!
//! Prints one JSON object per line: metric, threads, bytes touched, value, unit, isa. A limit is the best of
//! several rounds, because whatever disturbs a round can only make it slower. The processors to use are the
//! caller's affinity; `--rounds` and `--milliseconds` shorten the run.

mod amx;
mod compute;
mod memory;
mod short;

use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// How long to measure: `rounds` rounds of at least `round` each.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    round: Duration,
}

impl Effort {
    /// Best rate over all rounds, in units of work per second summed over `threads` threads.
    ///
    /// `make` runs on each thread and returns its step; a step does some work and returns how much.
    fn best_rate<Step: FnMut() -> f64>(self, threads: usize, make: impl Fn() -> Step + Sync) -> f64 {
        let start = Barrier::new(threads);
        let rounds = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.rates(&start, make()))).collect();
            workers.into_iter().filter_map(|worker| worker.join().ok()).collect::<Vec<_>>()
        });
        (0..self.rounds).map(|round| rounds.iter().map(|rates| rates[round]).sum()).fold(0.0, f64::max)
    }

    /// Rate of each round on one thread; every round starts on all threads together.
    fn rates(self, start: &Barrier, mut step: impl FnMut() -> f64) -> Vec<f64> {
        step();
        (0..self.rounds)
            .map(|_| {
                start.wait();
                let begin = Instant::now();
                let mut done = 0.0;
                while begin.elapsed() < self.round {
                    done += step();
                }
                done / begin.elapsed().as_secs_f64()
            })
            .collect()
    }
}

fn print(metric: &str, isa: &str, threads: usize, bytes: Option<usize>, (value, unit): (f64, &str)) {
    let bytes = bytes.map_or_else(|| "null".to_owned(), |bytes| bytes.to_string());
    println!(
        r#"{{"metric":"{metric}","isa":"{isa}","threads":{threads},"bytes":{bytes},"value":{value:.3},"unit":"{unit}"}}"#
    );
}

fn effort(arguments: &[String]) -> Result<Effort, String> {
    let mut effort = Effort { rounds: 5, round: Duration::from_millis(40) };
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(format!("{} needs a number", pair[0])) };
        let number: u32 = value.parse().map_err(|_| format!("{name} needs a whole number, got {value}"))?;
        match name.as_str() {
            "--rounds" if number > 0 => effort.rounds = number as usize,
            "--milliseconds" => effort.round = Duration::from_millis(number.into()),
            _ => return Err(format!("{name} {value}: expected --rounds N (at least 1) or --milliseconds N")),
        }
    }
    Ok(effort)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let effort = match effort(&arguments) {
        Ok(effort) => effort,
        Err(message) => {
            eprintln!("mnemex-calibrate: {message}");
            return ExitCode::from(2);
        }
    };
    for threads in [1, 2] {
        let narrower = compute::narrower().map(|kernels| ("avx2_f32", kernels));
        for (name, kernels) in [("fma_f32", compute::best())].into_iter().chain(narrower) {
            let registers = effort.best_rate(threads, || kernels.registers);
            print(&format!("{name}_registers"), kernels.isa, threads, None, (registers / 1e9, "GFLOP/s"));
            let panels = effort.best_rate(threads, || {
                let mut panel = compute::Panel::new();
                move || (kernels.panel)(&mut panel)
            });
            let metric = format!("{name}_loads_stores");
            print(&metric, kernels.isa, threads, Some(compute::PANEL_BYTES), (panels / 1e9, "GFLOP/s"));
        }
        for kernels in short::available() {
            let registers = effort.best_rate(threads, || kernels.registers);
            let metric = format!("{}_registers", kernels.name);
            print(&metric, kernels.name, threads, None, (registers / 1e9, kernels.unit));
            let panels = effort.best_rate(threads, || {
                let mut panel = short::Panel::new();
                move || (kernels.panel)(&mut panel)
            });
            let metric = format!("{}_loads_stores", kernels.name);
            print(&metric, kernels.name, threads, Some(short::PANEL_BYTES), (panels / 1e9, kernels.unit));
        }
        for (unit, kernels) in amx::Unit::available().into_iter().flat_map(|unit| unit.kinds().map(|kind| (unit, kind)))
        {
            let registers = effort.best_rate(threads, || move || (kernels.registers)(unit));
            print(&format!("{}_registers", kernels.name), "amx", threads, None, (registers / 1e9, kernels.unit));
            let tiles = effort.best_rate(threads, || {
                let mut panel = amx::Panel::new();
                move || (kernels.panel)(unit, &mut panel)
            });
            let metric = format!("{}_loads_stores", kernels.name);
            print(&metric, "amx", threads, Some(amx::PANEL_BYTES), (tiles / 1e9, kernels.unit));
        }
        for bytes in [MIB / 4, MIB, 8 * MIB, 64 * MIB, 512 * MIB] {
            let rate = effort.best_rate(threads, || {
                let buffer = memory::Buffer::new(bytes / threads);
                move || buffer.read()
            });
            print("read", memory::isa(), threads, Some(bytes), (rate / 1e9, "GB/s"));
        }
        let rate = effort.best_rate(threads, || {
            let (source, mut target) =
                (memory::Buffer::new(32 * MIB / threads), memory::Buffer::new(32 * MIB / threads));
            move || target.copy_from(&source)
        });
        print("copy", memory::isa(), threads, Some(64 * MIB), (rate / 1e9, "GB/s"));
    }
    ExitCode::SUCCESS
}
