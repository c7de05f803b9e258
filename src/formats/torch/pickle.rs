//! The pickle of a dictionary of tensors, as `torch.save` writes it (protocol 2 of Python's pickletools).

use std::collections::HashMap;
use std::rc::Rc;

use crate::formats::safetensors::Dtype;

/// Part, expectation and finding.
type Wrong = (String, String, String);

fn wrong(expected: impl Into<String>, found: impl Into<String>) -> Wrong {
    ("data.pkl".to_owned(), expected.into(), found.into())
}

/// How deep tuples and dictionaries may lie in each other; those of tensors need four.
const DEEPEST: usize = 8;

/// Elements that tensors look into.
#[derive(Clone, Debug)]
pub struct Storage {
    /// The dtype of its elements.
    pub dtype: Dtype,
    /// The entry of the zip.
    pub key: Rc<str>,
    /// The number of its elements.
    pub len: usize,
}

/// A tensor: a window of a storage.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The storage that the tensor is a view of.
    pub storage: Storage,
    /// Index of its first element in the storage.
    pub offset: usize,
    /// Its shape, outermost dimension first; none for a scalar.
    pub size: Vec<usize>,
    /// From one element to the next of each dimension.
    pub stride: Vec<usize>,
}

/// What a pickle may call.
#[derive(Clone, Copy, Debug)]
enum Global {
    OrderedDict,
    Tensor,
    Parameter,
    Storage(Dtype),
}

#[derive(Clone, Debug)]
enum Value {
    None,
    Bool,
    Int(i64),
    Text(Rc<str>),
    Tuple(Rc<[Value]>, usize),
    Dict(Vec<(Value, Value)>, usize),
    Global(Global),
    Storage(Rc<Storage>),
    Tensor(Rc<Tensor>),
}

impl Value {
    const fn name(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a truth value",
            Self::Int(_) => "a number",
            Self::Text(_) => "a text",
            Self::Tuple(..) => "a tuple",
            Self::Dict(..) => "a dictionary",
            Self::Global(_) => "a function or class",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }

    const fn depth(&self) -> usize {
        match self {
            Self::Tuple(_, depth) | Self::Dict(_, depth) => *depth,
            _ => 0,
        }
    }

    fn sizes(&self) -> Result<Vec<usize>, Wrong> {
        let Self::Tuple(items, _) = self else { return Err(wrong("a tuple of sizes", self.name())) };
        items.iter().map(Self::size).collect()
    }

    fn size(&self) -> Result<usize, Wrong> {
        match self {
            Self::Int(n) => usize::try_from(*n).map_err(|_| wrong("a size from 0", n.to_string())),
            other => Err(wrong("a size", other.name())),
        }
    }
}

/// The tensors of a dictionary, in its order.
pub fn state_dict(program: &[u8]) -> Result<Vec<(String, Tensor)>, Wrong> {
    let value = Machine { program, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() }.run()?;
    let Value::Dict(entries, _) = value else { return Err(wrong("a dictionary of tensors", value.name())) };
    let entry = |(key, value): (Value, Value)| match (key, value) {
        (Value::Text(name), Value::Tensor(tensor)) => Ok((name.to_string(), Tensor::clone(&tensor))),
        (Value::Text(name), other) => Err((name.to_string(), "a tensor".to_owned(), other.name().to_owned())),
        (other, _) => Err(wrong("names of tensors as keys", other.name())),
    };
    entries.into_iter().map(entry).collect()
}

/// The interpreter, of the few instructions that are needed.
struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl Machine<'_> {
    fn run(mut self) -> Result<Value, Wrong> {
        if self.bytes(2)? != b"\x80\x02" {
            return Err(wrong("a pickle of protocol 2, as torch.save writes", "another"));
        }
        loop {
            let [op] = self.array()?;
            match op {
                b'.' => break,
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'K' => self.int::<1>()?,
                b'M' => self.int::<2>()?,
                b'J' => {
                    let n = i32::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(n.into()));
                }
                0x8a => self.long()?,
                b'X' => self.text()?,
                b'(' => self.marks.push(self.stack.len()),
                b'}' => self.stack.push(Value::Dict(Vec::new(), 1)),
                b')' => self.tuple(0)?,
                0x85..=0x87 => self.tuple(usize::from(op - 0x84))?,
                b't' => {
                    let items = self.marked()?.len();
                    self.tuple(items)?;
                }
                b'q' => self.put::<1>()?,
                b'r' => self.put::<4>()?,
                b'h' => self.get::<1>()?,
                b'j' => self.get::<4>()?,
                b'c' => self.global()?,
                b'Q' => self.storage()?,
                b'R' => self.call()?,
                b's' => {
                    let before = self.stack.len().saturating_sub(2);
                    self.set_items(before)?;
                }
                b'u' => {
                    let mark = self.marked()?.start;
                    self.set_items(mark)?;
                }
                b'b' => self.build()?,
                other => {
                    let shown =
                        if other.is_ascii_graphic() { format!("{:?}", other as char) } else { format!("{other:#04x}") };
                    return Err(wrong(
                        "the instructions of a dictionary of tensors",
                        format!("{shown} at {}", self.at - 1),
                    ));
                }
            }
        }
        match (self.stack.pop(), self.stack.len(), self.at == self.program.len()) {
            (Some(value), 0, true) => Ok(value),
            _ => Err(wrong("one value", "several, or none")),
        }
    }

    fn bytes(&mut self, n: usize) -> Result<&[u8], Wrong> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.program.len());
        let end = end.ok_or_else(|| wrong("a whole program", "one that is cut short"))?;
        let bytes = &self.program[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    fn unsigned<const N: usize>(&mut self) -> Result<u32, Wrong> {
        Ok(self.bytes(N)?.iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte)))
    }

    fn int<const N: usize>(&mut self) -> Result<(), Wrong> {
        let n = self.unsigned::<N>()?;
        self.stack.push(Value::Int(n.into()));
        Ok(())
    }

    /// A number of up to 8 bytes, the last of which has the sign.
    fn long(&mut self) -> Result<(), Wrong> {
        let [n] = self.array()?;
        let bytes = self.bytes(n.into())?;
        let sign = if bytes.last().is_some_and(|byte| *byte > 127) { 255 } else { 0 };
        let mut whole = [sign; 8];
        let room = whole.get_mut(..bytes.len()).ok_or_else(|| wrong("a number of 64 bits", "a larger one"))?;
        room.copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(whole)));
        Ok(())
    }

    fn text(&mut self) -> Result<(), Wrong> {
        let n = self.unsigned::<4>()?;
        let text = std::str::from_utf8(self.bytes(n as usize)?).map_err(|_| wrong("texts of UTF-8", "others"))?.into();
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, Wrong> {
        // What lies below a mark is not of the instruction.
        let floor = self.marks.last().copied().unwrap_or(0);
        let value = if self.stack.len() > floor { self.stack.pop() } else { None };
        value.ok_or_else(|| wrong("a value on the stack", "none"))
    }

    /// Takes the last mark away; what lies above it.
    fn marked(&mut self) -> Result<std::ops::Range<usize>, Wrong> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        Ok(mark.ok_or_else(|| wrong("a mark on the stack", "none"))?..self.stack.len())
    }

    fn tuple(&mut self, items: usize) -> Result<(), Wrong> {
        let mut values = (0..items).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        values.reverse();
        let depth = self.depth(values.iter())?;
        self.stack.push(Value::Tuple(values.into(), depth));
        Ok(())
    }

    fn depth<'v>(&self, values: impl Iterator<Item = &'v Value>) -> Result<usize, Wrong> {
        let depth = 1 + values.map(Value::depth).max().unwrap_or(0);
        if depth > DEEPEST { Err(wrong("a dictionary of tensors", "tuples in tuples")) } else { Ok(depth) }
    }

    fn put<const N: usize>(&mut self) -> Result<(), Wrong> {
        let key = self.unsigned::<N>()?;
        let value = self.stack.last().ok_or_else(|| wrong("a value on the stack", "none"))?;
        // A dictionary is remembered before it is filled; what would refer to it again is refused.
        if !matches!(value, Value::Dict(..)) {
            self.memo.insert(key, value.clone());
        }
        Ok(())
    }

    fn get<const N: usize>(&mut self) -> Result<(), Wrong> {
        let key = self.unsigned::<N>()?;
        let value =
            self.memo.get(&key).ok_or_else(|| wrong("texts, tensors and tuples that are used again", "others"))?;
        self.stack.push(value.clone());
        Ok(())
    }

    fn line(&mut self) -> Result<String, Wrong> {
        let rest = &self.program[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or_else(|| wrong("a line", "none"))?;
        let line = String::from_utf8_lossy(self.bytes(end + 1)?);
        Ok(line.trim_end_matches('\n').to_owned())
    }

    fn global(&mut self) -> Result<(), Wrong> {
        let (module, name) = (self.line()?, self.line()?);
        let global = match (module.as_str(), name.as_str()) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::Tensor,
            ("torch._utils", "_rebuild_parameter") => Global::Parameter,
            ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
            ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
            ("torch", "LongStorage") => Global::Storage(Dtype::I64),
            ("torch", "IntStorage") => Global::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
            ("torch", "CharStorage") => Global::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Global::Storage(Dtype::BOOL),
            _ => return Err(wrong("tensors alone", format!("{module}.{name}, which is not run"))),
        };
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// What a storage is known by: `("storage", its class, the entry, its device, its length)`.
    fn storage(&mut self) -> Result<(), Wrong> {
        let value = self.pop()?;
        let Value::Tuple(parts, _) = &value else { return Err(wrong("the parts of a storage", value.name())) };
        let [Value::Text(kind), Value::Global(Global::Storage(dtype)), Value::Text(key), Value::Text(_), len] =
            &parts[..]
        else {
            return Err(wrong("the five parts of a storage", "others"));
        };
        if &**kind != "storage" {
            return Err(wrong("a storage", format!("{kind:?}")));
        }
        let storage = Storage { dtype: *dtype, key: key.clone(), len: len.size()? };
        self.stack.push(Value::Storage(storage.into()));
        Ok(())
    }

    fn call(&mut self) -> Result<(), Wrong> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments, _), Value::Global(function)) = (&arguments, &function) else {
            return Err(wrong("a function and its arguments", format!("{} and {}", function.name(), arguments.name())));
        };
        let value = match (function, &arguments[..]) {
            (Global::OrderedDict, []) => Value::Dict(Vec::new(), 1),
            (Global::Tensor, [Value::Storage(storage), offset, size, stride, Value::Bool, Value::Dict(..), ..])
                if arguments.len() <= 7 =>
            {
                let (offset, size, stride) = (offset.size()?, size.sizes()?, stride.sizes()?);
                if size.len() != stride.len() {
                    return Err(wrong(format!("{} strides", size.len()), stride.len().to_string()));
                }
                Value::Tensor(Rc::new(Tensor { storage: Storage::clone(storage), offset, size, stride }))
            }
            (Global::Parameter, [Value::Tensor(tensor), Value::Bool, Value::Dict(..)]) => Value::Tensor(tensor.clone()),
            _ => return Err(wrong("the arguments of a tensor", "others")),
        };
        self.stack.push(value);
        Ok(())
    }

    /// Puts the pairs above a height into the dictionary below them.
    fn set_items(&mut self, from: usize) -> Result<(), Wrong> {
        let items = self.stack.split_off(from.min(self.stack.len()));
        let depth = self.depth(items.iter())?;
        let Some(Value::Dict(entries, deepest)) = self.stack.last_mut() else {
            return Err(wrong("a dictionary", "another value"));
        };
        if !items.len().is_multiple_of(2) {
            return Err(wrong("keys with a value each", "a key alone"));
        }
        *deepest = depth.max(*deepest);
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            entries.push((key, value));
        }
        Ok(())
    }

    /// Attributes of an ordered dictionary, such as the versions of a model's modules, are not tensors.
    fn build(&mut self) -> Result<(), Wrong> {
        let state = self.pop()?;
        match (&state, self.stack.last()) {
            (Value::Dict(..), Some(Value::Dict(..))) => Ok(()),
            _ => Err(wrong("attributes of a dictionary", state.name())),
        }
    }
}
