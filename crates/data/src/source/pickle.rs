//! A reader for the few Python pickles that data sets come in: it builds data and never runs code.
//!
//! Source: CPython's `Lib/pickletools.py`, protocols 0–4, the opcodes that dictionaries of strings, numbers, lists and
//! numpy byte arrays use. Any other opcode, and any callable except numpy's array constructors, is refused.
//! Values live in an arena and refer to each other by number, so no input can exhaust the stack.

/// The place of a value in [`Pickle`]'s arena.
pub type Id = usize;

/// A value of a pickle. Python 2's byte strings, bytes and unicode strings are all `Text`.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// `None`, booleans and floats: present in some archives, of no use here.
    Other,
    /// An integer.
    Int(i64),
    /// A string of any kind, as its bytes.
    Text(&'a [u8]),
    /// Bytes that Python 3 wrote as a latin-1 string for Python 2's sake.
    Latin1(Vec<u8>),
    /// A list.
    List(Vec<Id>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A dictionary, in order.
    Dict(Vec<(Id, Id)>),
    /// One of the allowed callables.
    Callable(Callable),
    /// A numpy dtype by its name.
    Dtype(Id),
    /// A numpy array: empty until its state (version, shape, dtype, fortran order, bytes) is set.
    Array(Option<Id>),
}

/// What a pickle may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callable {
    /// `numpy.core.multiarray._reconstruct`
    Reconstruct,
    /// `numpy.ndarray`, only as an argument of the former
    NdArray,
    /// `numpy.dtype`
    Dtype,
    /// `_codecs.encode(text, 'latin1')`
    Encode,
}

/// A pickle that was read.
pub struct Pickle<'a> {
    arena: Vec<Value<'a>>,
    root: Id,
}

/// A numpy array of unsigned bytes in row-major order.
pub struct ByteArray<'p> {
    pub shape: Vec<usize>,
    pub bytes: &'p [u8],
}

impl<'a> Pickle<'a> {
    /// Reads a pickle.
    ///
    /// # Errors
    /// A sentence with the position, if it is cut short or holds something that is not allowed.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut machine =
            Machine { bytes, position: 0, arena: Vec::new(), stack: Vec::new(), memo: Vec::new(), copied: 0 };
        loop {
            let position = machine.position;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { arena: machine.arena, root }),
                Err(problem) => return Err(format!("not a readable pickle: {problem} at byte {position}")),
            }
        }
    }

    /// The value of a key of the outermost dictionary.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        let Value::Dict(items) = &self.arena[self.root] else { return None };
        let entry = items.iter().find(|(name, _)| self.text(&self.arena[*name]) == Some(key.as_bytes()));
        entry.map(|(_, value)| &self.arena[*value])
    }

    /// A string's bytes.
    pub fn text<'p>(&'p self, value: &'p Value<'a>) -> Option<&'p [u8]> {
        match value {
            Value::Text(bytes) => Some(bytes),
            Value::Latin1(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// An integer.
    pub fn int(&self, value: &Value) -> Option<i64> {
        if let Value::Int(int) = value { Some(*int) } else { None }
    }

    /// The items of a list or tuple.
    pub fn items<'p>(&'p self, value: &'p Value<'a>) -> Option<impl Iterator<Item = &'p Value<'a>>> {
        match value {
            Value::List(ids) | Value::Tuple(ids) => Some(ids.iter().map(|id| &self.arena[*id])),
            _ => None,
        }
    }

    /// A numpy array of unsigned bytes; `None` if it is anything else.
    pub fn byte_array<'p>(&'p self, value: &'p Value<'a>) -> Option<ByteArray<'p>> {
        let Value::Array(Some(state)) = value else { return None };
        let state: Vec<_> = self.items(&self.arena[*state])?.collect();
        let [_version, shape, dtype, _order, bytes] = state[..] else { return None };
        let Value::Dtype(name) = dtype else { return None };
        if !matches!(self.text(&self.arena[*name])?, b"u1" | b"|u1" | b"uint8") {
            return None;
        }
        let shape = self.items(shape)?.map(|n| usize::try_from(self.int(n)?).ok()).collect::<Option<_>>()?;
        Some(ByteArray { shape, bytes: self.text(bytes)? })
    }
}

enum Slot {
    Mark,
    Value(Id),
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    arena: Vec<Value<'a>>,
    stack: Vec<Slot>,
    memo: Vec<Option<Id>>,
    /// Bytes of strings that had to be copied; honest pickles copy each of their own bytes at most once.
    copied: usize,
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
            b'N' | 0x88 | 0x89 => self.push(Value::Other),
            b'G' => {
                self.take(8)?;
                self.push(Value::Other);
            }
            b'K' | b'M' | b'J' | 0x8a | b'I' | b'L' => self.push_int(opcode)?,
            b'U' | b'C' | 0x8c | b'T' | b'B' | b'X' | 0x8e | 0x8d => self.push_text(opcode)?,
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b'0' => drop(self.pop()?),
            b't' | b'l' | b'd' => self.collect(opcode)?,
            0x85..=0x87 => self.push_tuple(usize::from(opcode - 0x84))?,
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.extend_list(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.extend_dict(&items)?;
            }
            b'q' | b'r' | b'p' | 0x94 | b'h' | b'j' | b'g' => self.memo_op(opcode)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_callable(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (&self.arena[module], &self.arena[name]) else {
                    return Err("a global without a name".to_owned());
                };
                self.push_callable(module, name)?;
            }
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            _ => return Err(format!("opcode {opcode:#04x} is not allowed")),
        }
        Ok(None)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.position.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("the data ends too early")?;
        let bytes = &self.bytes[self.position..end];
        self.position = end;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.position..];
        let len = rest.iter().position(|b| *b == b'\n').ok_or("the data ends too early")?;
        self.position += len + 1;
        Ok(&rest[..len])
    }

    fn unsigned(&mut self, n_bytes: usize) -> Result<usize, String> {
        let value = self.take(n_bytes)?.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).map_err(|_| "a length is too large".to_owned())
    }

    fn push(&mut self, value: Value<'a>) {
        self.arena.push(value);
        self.stack.push(Slot::Value(self.arena.len() - 1));
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
        let mut ids = Vec::new();
        loop {
            match self.stack.pop() {
                Some(Slot::Value(id)) => ids.push(id),
                Some(Slot::Mark) => break,
                None => return Err("a mark is missing".to_owned()),
            }
        }
        ids.reverse();
        Ok(ids)
    }

    fn push_int(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b'K' => self.unsigned(1)? as i64,
            b'M' => self.unsigned(2)? as i64,
            b'J' => i64::from(self.unsigned(4)? as u32 as i32),
            0x8a => {
                let n = self.unsigned(1)?;
                let bytes = self.take(n)?;
                let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                let start = if negative { -1i64 } else { 0 };
                if n > 8 {
                    return Err("an integer is too large".to_owned());
                }
                bytes.iter().rev().fold(start, |value, byte| value << 8 | i64::from(*byte))
            }
            _ => {
                let line = str::from_utf8(self.line()?).map_err(|_| "an integer is no number")?;
                line.trim_end_matches('L').parse().map_err(|_| "an integer is no number")?
            }
        };
        self.push(Value::Int(value));
        Ok(())
    }

    fn push_text(&mut self, opcode: u8) -> Result<(), String> {
        let length_bytes = match opcode {
            b'U' | b'C' | 0x8c => 1,
            b'T' | b'B' | b'X' => 4,
            _ => 8,
        };
        let len = self.unsigned(length_bytes)?;
        let text = self.take(len)?;
        self.push(Value::Text(text));
        Ok(())
    }

    fn collect(&mut self, opcode: u8) -> Result<(), String> {
        let ids = self.pop_to_mark()?;
        match opcode {
            b't' => self.push(Value::Tuple(ids)),
            b'l' => self.push(Value::List(ids)),
            _ => {
                self.push(Value::Dict(Vec::new()));
                self.extend_dict(&ids)?;
            }
        }
        Ok(())
    }

    fn push_tuple(&mut self, n: usize) -> Result<(), String> {
        let mut ids = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        ids.reverse();
        self.push(Value::Tuple(ids));
        Ok(())
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Result<(), String> {
        let list = self.top()?;
        let Value::List(ids) = &mut self.arena[list] else { return Err("an item without a list".to_owned()) };
        ids.extend(items);
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.top()?;
        let Value::Dict(entries) = &mut self.arena[dict] else {
            return Err("an entry without a dictionary".to_owned());
        };
        entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    fn memo_op(&mut self, opcode: u8) -> Result<(), String> {
        let slot = match opcode {
            b'q' | b'h' => self.unsigned(1)?,
            b'r' | b'j' => self.unsigned(4)?,
            0x94 => self.memo.len(),
            _ => {
                let line = str::from_utf8(self.line()?).map_err(|_| "a memo slot is no number")?;
                line.parse().map_err(|_| "a memo slot is no number")?
            }
        };
        if matches!(opcode, b'h' | b'j' | b'g') {
            let id = self.memo.get(slot).copied().flatten().ok_or("a memo slot is empty")?;
            self.stack.push(Slot::Value(id));
        } else {
            // Every stored value took at least a byte, so larger slot numbers are not honest.
            if slot > self.bytes.len() {
                return Err("a memo slot is out of range".to_owned());
            }
            let id = self.top()?;
            self.memo.resize(self.memo.len().max(slot + 1), None);
            self.memo[slot] = Some(id);
        }
        Ok(())
    }

    fn push_callable(&mut self, module: &[u8], name: &[u8]) -> Result<(), String> {
        let callable = match (module, name) {
            (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => Callable::Reconstruct,
            (b"numpy", b"ndarray") => Callable::NdArray,
            (b"numpy", b"dtype") => Callable::Dtype,
            (b"_codecs", b"encode") => Callable::Encode,
            _ => {
                let (module, name) = (String::from_utf8_lossy(module), String::from_utf8_lossy(name));
                return Err(format!("calling {module}.{name} is not allowed"));
            }
        };
        self.push(Value::Callable(callable));
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let (Value::Callable(callable), Value::Tuple(arguments)) = (&self.arena[callable], &self.arena[arguments])
        else {
            return Err("a call of something that cannot be called".to_owned());
        };
        let first = arguments.first().copied();
        if let (Callable::Encode, Some(Value::Text(text))) = (callable, first.map(|id| &self.arena[id])) {
            self.copied += text.len();
            if self.copied > self.bytes.len() {
                return Err("a string is copied again and again".to_owned());
            }
        }
        let value = match (callable, first, first.map(|id| &self.arena[id])) {
            (Callable::Reconstruct, Some(_), _) => Value::Array(None),
            (Callable::Dtype, Some(name), _) => Value::Dtype(name),
            (Callable::Encode, _, Some(Value::Text(text))) => Value::Latin1(latin1(text)?),
            _ => return Err("a call with other arguments than numpy's".to_owned()),
        };
        self.push(value);
        Ok(())
    }

    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        let object = self.top()?;
        match &mut self.arena[object] {
            Value::Array(slot) => *slot = Some(state),
            Value::Dtype(_) => {} // byte order and alignment: of no meaning for bytes
            _ => return Err("a state for something that has none".to_owned()),
        }
        Ok(())
    }
}

fn latin1(text: &[u8]) -> Result<Vec<u8>, String> {
    let text = str::from_utf8(text).map_err(|_| "a string is not UTF-8")?;
    let bytes = text.chars().map(|c| u8::try_from(u32::from(c)));
    bytes.collect::<Result<_, _>>().map_err(|_| "a string is not latin-1".to_owned())
}
