//! What every part of the benchmark begins with: the config, the machine and its peaks.

use crate::context::Context;
use crate::exit::UsageError;
use crate::flags::BenchFlags;
use crate::{config, system};
use sdclr::Machine;
use sdclr::bench::{conv_unit, sample};
use sdclr_data::Dataset;
use sdclr_engine::{Peaks, Rates};
use sdclr_records::RunConfig;
use sdclr_records::layers::resolve;
use serde_json::{Map, Value, json};

/// A config, and the machine that it is benchmarked on.
pub struct Setup {
    pub context: Context,
    pub config: RunConfig,
    pub machine: Machine,
    pub peaks: Peaks,
    /// Whether the images are those of --data instead of made up.
    pub has_data: bool,
    processor: String,
    engine: String,
}

impl Setup {
    /// Resolves the flags, names the engine, begins to measure the peaks.
    ///
    /// # Errors
    /// Settings that do not do, threads that the system does not start.
    pub fn new(flags: &BenchFlags, context: Context) -> anyhow::Result<Self> {
        let layers = flags.layers()?;
        let has_data = layers[1].has("data.source");
        let config = resolve(&layers)?;
        let machine = Machine::of(&config, system::kernels()?);
        let engine = machine.engine()?.name();
        let processor = system::processor().unwrap_or_else(|| "unknown processor".to_owned());
        let mut peaks = Peaks::new(machine.n_threads())?;
        sample(&mut peaks);
        Ok(Self { context, config, machine, peaks, has_data, processor, engine })
    }

    /// The images of --data, if it was given.
    ///
    /// # Errors
    /// Images that cannot be opened.
    pub fn images(&self) -> anyhow::Result<Option<Dataset>> {
        if self.has_data { Ok(Some(config::open_training_images(&self.config)?)) } else { Ok(None) }
    }

    /// Checks that there are `needed` bytes: planned buffers take their pages when they are first written.
    ///
    /// # Errors
    /// If there are not.
    pub fn check_memory(&self, needed: usize) -> anyhow::Result<()> {
        let (_, free) = system::memory();
        if needed as u64 <= free {
            return Ok(());
        }
        let (batch_size, needed, free) = (self.config.train.batch_size, needed as f64 / 1e9, free as f64 / 1e9);
        let text = format!(
            "--batch-size {batch_size} needs {needed:.1} GB of memory and {free:.1} GB are free; try a smaller one"
        );
        Err(UsageError(text).into())
    }

    /// The best samples of the peaks so far.
    pub fn rates(&self) -> Rates {
        self.peaks.best()
    }

    /// The unit that convolutions run on, and its peak.
    pub fn unit(&self) -> (&'static str, f64) {
        conv_unit(&self.machine, &self.rates())
    }

    /// One line: the processor, the engine, the peaks.
    pub fn headline(&self) -> String {
        let rates = self.rates();
        let mut peaks = vec![format!("f32 {:.0} GFLOP/s", rates.f32_gflops)];
        peaks.extend(rates.bf16_gflops.map(|gflops| format!("bf16 {gflops:.0} GFLOP/s")));
        peaks.extend(rates.amx_gflops.map(|gflops| format!("AMX {gflops:.0} GFLOP/s")));
        peaks.push(format!("memory {:.1} GB/s", rates.memory_gb_per_s));
        format!("{}; {}; peaks: {}", self.processor, self.engine, peaks.join(", "))
    }

    /// `resnet18, 128 images of 32 pixels`.
    pub fn subject(&self) -> String {
        let RunConfig { train, data, model, .. } = &self.config;
        format!("{}, {} images of {} pixels", model.name, train.batch_size, data.image_size)
    }

    /// Keys of every part: who, on what, with which peaks.
    pub fn json(&self) -> Map<String, Value> {
        let (config, rates) = (&self.config, self.rates());
        let value = json!({
            "peer": "sdclr",
            "version": env!("CARGO_PKG_VERSION"),
            "processor": self.processor,
            "engine": self.engine,
            "method": config.method,
            "model": config.model.name,
            "image_size": config.data.image_size,
            "batch_size": config.train.batch_size,
            "threads": self.machine.n_threads(),
            "peak_f32_gflops": rates.f32_gflops,
            "peak_bf16_gflops": rates.bf16_gflops,
            "peak_amx_gflops": rates.amx_gflops,
            "memory_gb_per_s": rates.memory_gb_per_s,
            "peak_unit": self.unit().0,
        });
        object(value)
    }
}

/// The keys and values of a JSON object.
///
/// # Panics
/// If it is none.
pub fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => unreachable!("{other} is no object"),
    }
}
