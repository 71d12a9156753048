//! How much is remembered, and for how long: expiry and the next deadline follow from the types of the facts.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use core::borrow::Borrow;
use core::ops::Deref;

use crate::observation::BootTime;

/// Something that time alone can change.
pub(crate) trait Memory {
    /// Returns when this no longer counts; `None` if it counts until something else is observed.
    fn until(&self) -> Option<BootTime> {
        None
    }

    /// Removes the parts that no longer count at `now`.
    fn expire(&mut self, _now: BootTime) {}

    /// Reports each time after which this may be judged differently. Times that have passed may be among them.
    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        self.until().into_iter().for_each(at);
    }
}

impl<T: Memory> Memory for Option<T> {
    fn expire(&mut self, now: BootTime) {
        self.take_if(|known| known.until().is_some_and(|until| until <= now));
        if let Some(known) = self {
            known.expire(now);
        }
    }

    fn deadlines(&self, now: BootTime, at: &mut dyn FnMut(BootTime)) {
        if let Some(known) = self {
            known.deadlines(now, at);
        }
    }
}

/// A fact with the times of its first and its newest observation in a row. It counts for `LIFETIME` nanoseconds after the
/// newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen<T, const LIFETIME: u64> {
    pub(crate) value: T,
    pub(crate) since: BootTime,
    pub(crate) last: BootTime,
}

/// The lifetime of a fact that counts until something else is observed.
pub(crate) const UNTIL_CHANGED: u64 = u64::MAX;

impl<T, const LIFETIME: u64> Seen<T, LIFETIME> {
    /// Returns a fact that was first observed at `at`.
    pub(crate) const fn new(value: T, at: BootTime) -> Self {
        Self { value, since: at, last: at }
    }
}

impl<T, const LIFETIME: u64> Memory for Seen<T, LIFETIME> {
    fn until(&self) -> Option<BootTime> {
        (LIFETIME != UNTIL_CHANGED).then(|| self.last.plus(LIFETIME))
    }
}

/// At most `CAPACITY` entries by key. Once it is full, entries with new keys are refused: forgetting an old fault would
/// withdraw it.
#[derive(Clone, Debug)]
pub(crate) struct Bounded<K, V, const CAPACITY: usize>(BTreeMap<K, V>);

impl<K, V, const CAPACITY: usize> Default for Bounded<K, V, CAPACITY> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K, V, const CAPACITY: usize> Deref for Bounded<K, V, CAPACITY> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<K: Ord, V, const CAPACITY: usize> Bounded<K, V, CAPACITY> {
    /// Inserts or replaces an entry, unless there is no room for it.
    pub(crate) fn put(&mut self, key: K, value: V) {
        if self.0.len() < CAPACITY || self.0.contains_key(&key) {
            self.0.insert(key, value);
        }
    }

    /// Returns the entry, which `new` makes if there is none; `None` if there is no room for it.
    pub(crate) fn get_or_insert_with(&mut self, key: K, new: impl FnOnce() -> V) -> Option<&mut V> {
        let has_room = self.0.len() < CAPACITY;
        match self.0.entry(key) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(free) => has_room.then(|| free.insert(new())),
        }
    }

    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.0.get_mut(key)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.values_mut()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.0.iter_mut()
    }

    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.0.remove(key)
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&K, &mut V) -> bool) {
        self.0.retain(keep);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl<K: Ord, T, const LIFETIME: u64, const CAPACITY: usize> Bounded<K, Seen<T, LIFETIME>, CAPACITY> {
    /// Takes an observation. The time of the first one in a row is kept.
    pub(crate) fn see(&mut self, key: K, value: T, at: BootTime) {
        let since = self.0.get(&key).map_or(at, |known| known.since);
        self.put(key, Seen { value, since, last: at });
    }
}

impl<K: Ord, V: Memory, const CAPACITY: usize> Memory for Bounded<K, V, CAPACITY> {
    fn expire(&mut self, now: BootTime) {
        self.0.retain(|_, known| known.until().is_none_or(|until| until > now));
        self.0.values_mut().for_each(|known| known.expire(now));
    }

    fn deadlines(&self, now: BootTime, at: &mut dyn FnMut(BootTime)) {
        self.0.values().for_each(|known| known.deadlines(now, at));
    }
}

/// Declares a struct whose fields under `timed` implement [`Memory`], and [`Memory`] for the struct: nothing that expires is
/// listed a second time.
macro_rules! memory {
    (
        $(#[$struct_meta:meta])*
        $struct_vis:vis struct $name:ident {
            plain { $($(#[$plain_meta:meta])* $plain_vis:vis $plain:ident: $plain_type:ty,)* }
            timed { $($(#[$timed_meta:meta])* $timed_vis:vis $timed:ident: $timed_type:ty,)* }
        }
    ) => {
        $(#[$struct_meta])*
        $struct_vis struct $name {
            $($(#[$plain_meta])* $plain_vis $plain: $plain_type,)*
            $($(#[$timed_meta])* $timed_vis $timed: $timed_type,)*
        }

        impl $crate::memory::Memory for $name {
            fn expire(&mut self, now: $crate::observation::BootTime) {
                $($crate::memory::Memory::expire(&mut self.$timed, now);)*
            }

            fn deadlines(
                &self,
                now: $crate::observation::BootTime,
                at: &mut dyn FnMut($crate::observation::BootTime),
            ) {
                $($crate::memory::Memory::deadlines(&self.$timed, now, at);)*
            }
        }
    };
}

pub(crate) use memory;
