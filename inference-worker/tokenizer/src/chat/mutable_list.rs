//! A list that a template can change in place, as Python's can: `append`, `pop` and their kin.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// More than any conversation has messages; a template that goes on adding is broken.
const MAX_LEN: usize = 1 << 17;
/// How deep and how far a value is searched for the list that it is added to.
const MAX_DEPTH: usize = 64;
const MAX_VISITS: usize = 1 << 20;

/// Shared by all its names, as in Python.
#[derive(Debug, Default)]
pub(super) struct MutableList {
    items: Mutex<Vec<Value>>,
}

impl MutableList {
    pub(super) fn from_value(items: &Value) -> Result<Value, Error> {
        let items = items.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
        Ok(Value::from_object(MutableList { items: Mutex::new(items) }))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Value>> {
        // No method panics while it holds the lock.
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Python's index: negative ones count from the end.
    fn position(index: i64, len: usize) -> Option<usize> {
        let position = if index < 0 { index.checked_add_unsigned(len as u64)? } else { index };
        usize::try_from(position).ok()
    }

    fn add(self: &Arc<Self>, at: Option<i64>, item: Value) -> Result<(), Error> {
        self.refuse_cycle(&item)?;
        let mut items = self.lock();
        if items.len() >= MAX_LEN {
            return Err(refuse("a list grew beyond 131072 items"));
        }
        let at = at.map_or(items.len(), |at| Self::position(at, items.len()).unwrap_or(0).min(items.len()));
        items.insert(at, item);
        Ok(())
    }

    /// A list inside itself would never be printed to the end, nor freed.
    fn refuse_cycle(self: &Arc<Self>, item: &Value) -> Result<(), Error> {
        let mut visits = 0;
        let mut open = vec![(item.clone(), 0)];
        while let Some((value, depth)) = open.pop() {
            visits += 1;
            if depth > MAX_DEPTH || visits > MAX_VISITS {
                return Err(refuse("a value too large or too deep was added to a list"));
            }
            let Some(object) = value.as_object() else { continue };
            if object.downcast_ref::<MutableList>().is_some_and(|list| std::ptr::eq(list, Arc::as_ptr(self)))
            {
                return Err(refuse("a list can't be added to itself"));
            }
            match object.repr() {
                ObjectRepr::Map => {
                    open.extend(
                        object.try_iter_pairs().into_iter().flatten().map(|(_, value)| (value, depth + 1)),
                    );
                }
                ObjectRepr::Seq => {
                    open.extend(object.try_iter().into_iter().flatten().map(|item| (item, depth + 1)))
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Object for MutableList {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let items = self.lock();
        items.get(Self::position(key.as_i64()?, items.len())?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.lock().clone())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.lock().len())
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<std::cmp::Ordering> {
        let other = other.downcast_ref::<Self>()?;
        if std::ptr::eq(Arc::as_ptr(self), other) {
            return Some(std::cmp::Ordering::Equal);
        }
        let (mine, theirs) = (self.lock().clone(), other.lock().clone());
        Some(mine.cmp(&theirs))
    }

    fn call_method(
        self: &Arc<Self>,
        _state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        match method {
            "append" => {
                let (item,): (Value,) = from_args(args)?;
                self.add(None, item)?;
            }
            "insert" => {
                let (at, item): (i64, Value) = from_args(args)?;
                self.add(Some(at), item)?;
            }
            "extend" => {
                let (more,): (Value,) = from_args(args)?;
                let more = more.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                more.into_iter().try_for_each(|item| self.add(None, item))?;
            }
            "pop" => {
                let (at,): (Option<i64>,) = from_args(args)?;
                let mut items = self.lock();
                let at = Self::position(at.unwrap_or(-1), items.len()).filter(|&at| at < items.len());
                return at
                    .map(|at| items.remove(at))
                    .ok_or_else(|| refuse("pop from a list without that item"));
            }
            "remove" => {
                let (item,): (Value,) = from_args(args)?;
                let mut items = self.lock();
                let at = items.iter().position(|one| *one == item);
                at.map(|at| items.remove(at))
                    .ok_or_else(|| refuse("remove of an item that is not in the list"))?;
            }
            "clear" => {
                let () = from_args(args)?;
                self.lock().clear();
            }
            "reverse" => {
                let () = from_args(args)?;
                self.lock().reverse();
            }
            "copy" => {
                let () = from_args(args)?;
                let items = Mutex::new(self.lock().clone());
                return Ok(Value::from_object(MutableList { items }));
            }
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        }
        Ok(Value::from(()))
    }
}

fn refuse(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
