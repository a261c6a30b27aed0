//! Ctrl-C and a polite kill raise the library's stop flag; a second one ends the process at once.

use anyhow::Context as _;
use sdclr::signals::{StopFlag, StopSignal};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Installs the handlers and returns the flag that they raise.
///
/// # Errors
/// If the system refuses.
pub fn install() -> anyhow::Result<StopFlag> {
    let flag = StopFlag::new();
    let armed = Arc::new(AtomicBool::new(false));
    for signal in [StopSignal::Interrupt, StopSignal::Terminate] {
        let number = i32::try_from(signal.number()).context("signal number")?;
        // Registered first, so that it sees whether an earlier signal has armed it.
        signal_hook::flag::register_conditional_shutdown(number, signal.exit_code().into(), Arc::clone(&armed))?;
        signal_hook::flag::register(number, Arc::clone(&armed))?;
        signal_hook::flag::register_usize(number, flag.cell(), signal.number())?;
    }
    Ok(flag)
}
