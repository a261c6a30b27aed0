//! Ctrl-C, a polite kill and a closed terminal raise the library's stop flag; a second Ctrl-C or kill ends the process
//! at once.
//!
//! Handlers do nothing but store a number and write a byte. A thread that waits for the byte does the talking, so that
//! an answer comes at once however long a step takes.

use anyhow::Context as _;
use sdclr::signals::{StopFlag, StopSignal};

/// What is said at the first and at the second signal.
struct Words {
    first: &'static str,
    second: &'static str,
}

const PLAIN: Words =
    Words { first: "stopping after this step; press Ctrl-C again to stop at once", second: "stopped at once" };
const TRAINING: Words = Words {
    first: "stopping after this step; press Ctrl-C again to stop at once without a checkpoint",
    second: "stopped at once; the last checkpoint, if there is one, stands",
};

const PACKING: Words = Words {
    first: "stopping; press Ctrl-C again to stop at once and leave a hidden .tmp file behind",
    second: "stopped at once; a hidden .tmp file is left behind",
};

/// Installs the handlers and returns the flag that they raise.
///
/// # Errors
/// If the system refuses.
pub fn install() -> anyhow::Result<StopFlag> {
    install_with(PLAIN)
}

/// [`install`] for a command that writes a checkpoint when it is stopped.
///
/// # Errors
/// If the system refuses.
pub fn install_for_training() -> anyhow::Result<StopFlag> {
    install_with(TRAINING)
}

/// [`install`] for a command that writes a file beside its place.
///
/// # Errors
/// If the system refuses.
pub fn install_for_packing() -> anyhow::Result<StopFlag> {
    install_with(PACKING)
}

/// Makes a limit on the size of files (`ulimit -f`) an error of the write, which says what to do, and not the end of the process.
pub fn let_large_writes_fail() {
    #[cfg(unix)]
    {
        // Without a handler the process ends at once, as it would have.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default());
    }
}

#[cfg(unix)]
fn install_with(words: Words) -> anyhow::Result<StopFlag> {
    use std::os::unix::net::UnixStream;
    let flag = StopFlag::new();
    let (receiver, sender) = UnixStream::pair()?;
    for signal in [StopSignal::Interrupt, StopSignal::Terminate] {
        // Registered first, so that the number is stored when the thread reads the byte.
        signal_hook::flag::register_usize(number(signal)?, flag.cell(), signal.number())?;
        signal_hook::low_level::pipe::register(number(signal)?, sender.try_clone()?)?;
    }
    // Shells and the system may both report a closed terminal: a second hang-up is no wish to stop at once, and there
    // is nobody left to talk to.
    if !is_hang_up_ignored() {
        signal_hook::flag::register_usize(number(StopSignal::HangUp)?, flag.cell(), StopSignal::HangUp.number())?;
    }
    let raised = flag.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || answer(receiver, &raised, &words))?;
    Ok(flag)
}

/// Systems without POSIX signals: the second signal ends the process, nothing is said.
#[cfg(not(unix))]
fn install_with(_: Words) -> anyhow::Result<StopFlag> {
    use std::sync::{Arc, atomic::AtomicBool};
    let flag = StopFlag::new();
    let armed = Arc::new(AtomicBool::new(false));
    for signal in [StopSignal::Interrupt, StopSignal::Terminate] {
        let number = number(signal)?;
        // Registered first, so that it sees whether an earlier signal has armed it.
        signal_hook::flag::register_conditional_shutdown(number, signal.exit_code().into(), Arc::clone(&armed))?;
        signal_hook::flag::register(number, Arc::clone(&armed))?;
        signal_hook::flag::register_usize(number, flag.cell(), signal.number())?;
    }
    Ok(flag)
}

fn number(signal: StopSignal) -> anyhow::Result<i32> {
    i32::try_from(signal.number()).context("signal number")
}

/// Answers each signal as its byte arrives; the second ends the process.
#[cfg(unix)]
fn answer(mut receiver: impl std::io::Read, flag: &StopFlag, words: &Words) {
    let mut byte = [0];
    if receiver.read_exact(&mut byte).is_err() {
        return;
    }
    say(words.first);
    if receiver.read_exact(&mut byte).is_err() {
        return;
    }
    say(words.second);
    let code = flag.raised().map_or(1, StopSignal::exit_code);
    // Without destructors: the training threads are still at work.
    signal_hook::low_level::exit(code.into());
}

/// One line on stderr, over what the terminal shows of the bar and of Ctrl-C.
#[cfg(unix)]
fn say(text: &str) {
    use std::io::{IsTerminal as _, Write as _};
    let mut stderr = std::io::stderr();
    let clear = if stderr.is_terminal() { "\r\x1b[K" } else { "" };
    // Stopping goes on without a reader.
    let _ = stderr.write_all(format!("{clear}{text}\n").as_bytes());
}

/// Whether the process was started to outlive its terminal, as by `nohup`; a handler would undo that.
#[cfg(unix)]
fn is_hang_up_ignored() -> bool {
    // Elsewhere it cannot be told without `unsafe`, and a run under nohup must go on.
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return true };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Bit n - 1 stands for signal n.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_none_or(|mask| mask & 1 == 1)
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
