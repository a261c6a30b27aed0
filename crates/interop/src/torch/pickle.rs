//! A machine for the pickles inside `torch.save` files: it builds data and never runs code.
//!
//! Source: CPython's `Lib/pickletools.py`, protocols 0 to 4. Any opcode that is not listed in [`Machine::step`] and any
//! global that is not listed in [`super::globals`] is refused by name and position. Values live in an arena and refer to
//! each other by number, so no depth can exhaust the stack; their number is limited, and strings are copied once from
//! the file, so that memory stays in proportion to it.

use super::globals::{self, Global};
use super::value::{Id, Pickle, Value};

/// Values of the largest pickle: a ResNet-152 with the state of Adam has some 40 thousand.
const MAX_VALUES: usize = 1 << 20;

/// What is wrong with a pickle, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// What.
    pub what: String,
    /// First byte of the opcode.
    pub position: usize,
}

/// Reads the pickle at the beginning of `bytes`; also returns how many bytes it took.
///
/// # Errors
/// What is not allowed, or missing.
pub(crate) fn read(bytes: &[u8]) -> Result<(Pickle, usize), Problem> {
    let mut machine = Machine { bytes, position: 0, values: Vec::new(), stack: Vec::new(), memo: Vec::new() };
    loop {
        let position = machine.position;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok((Pickle { values: machine.values, root }, machine.position)),
            Err(what) => return Err(Problem { what, position }),
        }
    }
}

enum Slot {
    Mark,
    Value(Id),
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    values: Vec<Value>,
    stack: Vec<Slot>,
    memo: Vec<Option<Id>>,
}

impl<'a> Machine<'a> {
    /// Executes one opcode; `Some` at the end.
    fn step(&mut self) -> Result<Option<Id>, String> {
        let opcode = self.take(1)?[0];
        match opcode {
            b'.' => return self.pop().map(Some),
            0x80 => drop(self.take(1)?), // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.stack.push(Slot::Mark),
            b'0' => drop(self.pop()?),
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool(opcode == 0x88))?,
            b'G' => {
                let float = self.take(8)?.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
                self.push(Value::Float(f64::from_bits(float)))?;
            }
            b'K' | b'M' | b'J' | 0x8a => self.push_int(opcode)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'C' | b'B' => self.push_text(opcode)?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?;
            }
            0x85..=0x87 => {
                let mut items = (0..opcode - 0x84).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.push(Value::Tuple(items))?;
            }
            b'a' | b'e' | b's' | b'u' => self.extend(opcode)?,
            b'q' | b'r' | 0x94 => self.remember(opcode)?,
            b'h' | b'j' => {
                let slot = self.unsigned(if opcode == b'h' { 1 } else { 4 })?;
                let id = self.memo.get(slot).copied().flatten().ok_or("an empty memo slot is asked for")?;
                self.stack.push(Slot::Value(id));
            }
            b'c' | 0x93 => self.push_global(opcode)?,
            b'Q' => {
                let id = self.pop()?;
                let storage = globals::storage(&self.values, id)?;
                self.push(Value::Storage(storage))?;
            }
            b'R' => self.reduce()?,
            b'b' => {
                let state = self.pop()?;
                globals::build(&self.values, self.top()?, state)?;
            }
            _ => return Err(format!("opcode {opcode:#04x} is not allowed")),
        }
        Ok(None)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.position.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("the data end too early")?;
        let bytes = &self.bytes[self.position..end];
        self.position = end;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.position..];
        let len = rest.iter().position(|b| *b == b'\n').ok_or("the data end too early")?;
        self.position += len + 1;
        str::from_utf8(&rest[..len]).map_err(|_| "a name is not UTF-8".to_owned())
    }

    fn unsigned(&mut self, n_bytes: usize) -> Result<usize, String> {
        let value = self.take(n_bytes)?.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).map_err(|_| "a length is too large".to_owned())
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.values.len() == MAX_VALUES {
            return Err(format!("there are more than {MAX_VALUES} values"));
        }
        self.values.push(value);
        self.stack.push(Slot::Value(self.values.len() - 1));
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        match self.stack.pop() {
            Some(Slot::Value(id)) => Ok(id),
            _ => Err("a value is missing".to_owned()),
        }
    }

    fn top(&self) -> Result<Id, String> {
        match self.stack.last() {
            Some(Slot::Value(id)) => Ok(*id),
            _ => Err("a value is missing".to_owned()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.stack.iter().rposition(|slot| matches!(slot, Slot::Mark)).ok_or("a mark is missing")?;
        let ids = self.stack.drain(mark..).filter_map(|slot| if let Slot::Value(id) = slot { Some(id) } else { None });
        Ok(ids.collect())
    }

    fn push_int(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b'K' => self.unsigned(1)? as i64,
            b'M' => self.unsigned(2)? as i64,
            b'J' => i64::from(self.unsigned(4)? as u32 as i32),
            _ => {
                let n = self.unsigned(1)?;
                let bytes = self.take(n)?;
                if n > 8 {
                    return Err("an integer takes more than 64 bits".to_owned());
                }
                let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                let start = if negative { -1i64 } else { 0 };
                bytes.iter().rev().fold(start, |value, byte| value << 8 | i64::from(*byte))
            }
        };
        self.push(Value::Int(value))
    }

    /// A string of Python 3, or a string or bytes of Python 2, which are text if they are UTF-8.
    fn push_text(&mut self, opcode: u8) -> Result<(), String> {
        let length_bytes = match opcode {
            b'U' | b'C' | 0x8c => 1,
            0x8d => 8,
            _ => 4,
        };
        let len = self.unsigned(length_bytes)?;
        let bytes = self.take(len)?;
        match (str::from_utf8(bytes), opcode) {
            (_, b'C' | b'B') | (Err(_), b'U' | b'T') => self.push(Value::Bytes(bytes.into())),
            (Ok(text), _) => self.push(Value::Text(text.into())),
            (Err(_), _) => Err("a string is not UTF-8".to_owned()),
        }
    }

    /// Adds one item or entry, or all since the mark, to the list or dictionary below.
    fn extend(&mut self, opcode: u8) -> Result<(), String> {
        let mut items = match opcode {
            b'a' => vec![self.pop()?],
            b's' => vec![self.pop()?, self.pop()?],
            _ => self.pop_to_mark()?,
        };
        if opcode == b's' {
            items.reverse();
        }
        let below = self.top()?;
        match (opcode, &mut self.values[below]) {
            (b'a' | b'e', Value::List(list)) => list.extend(items),
            (b's' | b'u', Value::Dict(entries)) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err("an item for something that is no list or dictionary".to_owned()),
        }
        Ok(())
    }

    fn remember(&mut self, opcode: u8) -> Result<(), String> {
        let slot = match opcode {
            b'q' => self.unsigned(1)?,
            b'r' => self.unsigned(4)?,
            _ => self.memo.len(),
        };
        // Picklers number their slots from 0 or 1 and remember each value once.
        if slot > self.values.len() {
            return Err(format!("memo slot {slot} is out of range"));
        }
        let id = self.top()?;
        self.memo.resize(self.memo.len().max(slot + 1), None);
        self.memo[slot] = Some(id);
        Ok(())
    }

    fn push_global(&mut self, opcode: u8) -> Result<(), String> {
        if opcode == b'c' {
            let (module, name) = (self.line()?, self.line()?);
            return self.push(Value::Global(Global::named(module, name)?));
        }
        let (name, module) = (self.pop()?, self.pop()?);
        let (Value::Text(module), Value::Text(name)) = (&self.values[module], &self.values[name]) else {
            return Err("a global without a name".to_owned());
        };
        let global = Global::named(module, name)?;
        self.push(Value::Global(global))
    }

    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let Value::Global(global) = self.values[callable] else {
            return Err("a call of something that cannot be called".to_owned());
        };
        // No allowed call takes more than eight arguments, so copying them stays in proportion.
        let arguments = match &self.values[arguments] {
            Value::Tuple(arguments) if arguments.len() <= 8 => arguments.clone(),
            _ => return Err("a call without a short tuple of arguments".to_owned()),
        };
        if let Some(id) = globals::same(&self.values, global, &arguments) {
            self.stack.push(Slot::Value(id));
            return Ok(());
        }
        let value = globals::call(&mut self.values, global, &arguments)?;
        self.push(value)
    }
}

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod tests;
