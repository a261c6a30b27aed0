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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn the_first_signal_raises_the_flag_and_lets_the_program_go_on() {
        let flag = install().expect("handlers");
        assert_eq!(flag.raised(), None);
        signal_hook::low_level::raise(15).expect("raises");
        assert_eq!(flag.raised(), Some(StopSignal::Terminate));
    }
}
