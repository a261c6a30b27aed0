//! `sdclr doctor`: what this machine offers, and what will be used of it.

use crate::context::Context;
use crate::system;
use sdclr::Machine;
use sdclr_records::names::{Device, Precision};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Looks around and reports.
///
/// # Errors
/// If stdout cannot be written, or the engine not be made.
pub fn run(context: Context) -> anyhow::Result<ExitCode> {
    let found = look()?;
    if context.json {
        context.print_json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    let lines = [
        ("version", plain(&found["version"])),
        ("processor", plain(&found["processor"])),
        ("features", list(&found["features"])),
        ("cores", plain(&found["cores"])),
        (
            "memory",
            format!("{} GB, {} GB free", gigabytes(&found["memory_bytes"]), gigabytes(&found["memory_free_bytes"])),
        ),
        ("disk here", format!("{} GB free", gigabytes(&found["disk_free_bytes"]))),
        ("will use", plain(&found["engine"])),
    ];
    let text: String = lines.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect();
    context.print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn look() -> anyhow::Result<Value> {
    let (total, free) = system::memory();
    // What the scheduler lets this process use, affinity and container limits included.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (device, precision) = (Device::Auto, Precision::Auto);
    let engine = Machine { device, precision, threads: 0, workers: 0, kernels: system::kernels()? }.engine()?;
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "processor": system::processor(),
        "features": features(),
        "cores": threads,
        "memory_bytes": total,
        "memory_free_bytes": free,
        "disk_free_bytes": system::disk_free(Path::new(".")),
        "engine": engine.name(),
    }))
}

/// The processor's vector and matrix extensions that matter to training.
fn features() -> Vec<&'static str> {
    // The system's own list: what the processor has and the system lets programs use, under Linux's names.
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpuinfo.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags: Vec<&str> = line.map(|line| line.split_whitespace().collect()).unwrap_or_default();
    let wanted = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve"];
    let mut found: Vec<&str> = wanted.into_iter().filter(|name| flags.contains(name)).collect();
    if flags.is_empty() {
        found = detected();
    }
    found
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Vec<&'static str> {
    let known = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    known.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> Vec<&'static str> {
    Vec::new()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "unknown".to_owned(),
        _ => value.to_string(),
    }
}

fn list(value: &Value) -> String {
    let items: Vec<String> = value.as_array().into_iter().flatten().map(plain).collect();
    if items.is_empty() { "none known".to_owned() } else { items.join(", ") }
}

fn gigabytes(value: &Value) -> String {
    value.as_f64().map_or_else(|| "unknown".to_owned(), |bytes| format!("{:.1}", bytes / 1e9))
}
