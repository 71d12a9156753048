//! Writes records into the ring buffer.
//!
//! The ring buffer does not zero the memory of a record, so [`report!`] must name every field. Fields are
//! written one by one into the reserved memory, because a whole record would first be built on the stack,
//! which has 512 bytes.
//!
//! Only the tails of byte fields keep what was there before: the bytes behind the NUL of a text and behind
//! the length of copied data. The kernel allocates the ring buffer zeroed, and only records are written to
//! it, so these bytes come from earlier records, which the reader has received already.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user, bpf_probe_read_user_str,
    bpf_ringbuf_discard, bpf_ringbuf_submit,
};
use probe_common::{Header, Record, Skip};

use crate::current::now;
use crate::layout::{DENTRY_SHORT_NAME, HAVE_PROBE_READ, get};
use crate::maps::EVENTS;
use crate::read::KernelPtr;

/// A reserved record, which is discarded unless it is submitted. The verifier rejects programs that do
/// neither.
pub(crate) struct Entry<T: Record + 'static>(*mut T);

impl<T: Record> Entry<T> {
    /// Reserves the record; nothing of its memory is written.
    #[inline(always)]
    pub(crate) fn reserve() -> Result<Self, Skip> {
        const { assert!(align_of::<T>() <= 8, "the ring buffer aligns records to eight bytes") };
        let mut entry = EVENTS.reserve::<T>(0).ok_or(Skip::RingFull)?;
        Ok(Self(entry.as_mut_ptr()))
    }

    /// Returns the header of a record that is written now.
    #[inline(always)]
    pub(crate) fn header() -> Header {
        Header { at_ns: now(), code: T::CODE as u16, _pad: [0; 6] }
    }

    /// Returns the memory of the record.
    #[inline(always)]
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.0
    }

    /// Makes the record visible to the reader.
    ///
    /// # Safety
    /// Every field of the record was written.
    #[inline(always)]
    pub(crate) unsafe fn submit(self) {
        // SAFETY: reserved, and neither submitted nor discarded before.
        unsafe { bpf_ringbuf_submit(self.0.cast(), 0) };
        core::mem::forget(self);
    }
}

impl<T: Record> Drop for Entry<T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: reserved, and neither submitted nor discarded before.
        unsafe { bpf_ringbuf_discard(self.0.cast(), 0) };
    }
}

/// Reserves a record, writes its header and then each field in the order of the list, and submits it. Returns
/// from the function with [`Skip::RingFull`] if the ring buffer is full.
///
/// `field: value` assigns a value, `field` a variable of that name. `field(to): expression` binds `to` to a
/// [`Field`], which the expression fills in place. Expressions are evaluated after the record was reserved;
/// one that returns from the function, for example with `?`, discards the record. A field that is not in the
/// list, padding included, is a compile error.
///
/// A macro and not a function that takes a closure: closures cannot be inlined unconditionally.
macro_rules! report {
    (@field $entry:ident $record:ident $field:ident: $value:expr) => {
        let value = $value;
        // SAFETY: the memory of the reserved record; the field is written and not read.
        unsafe { (*$entry.as_mut_ptr()).$field = value };
    };
    (@field $entry:ident $record:ident $field:ident ($to:ident): $fill:expr) => {
        const { assert!(core::mem::offset_of!($record, $field).is_multiple_of(8)) };
        // SAFETY: the memory of the reserved record, which is aligned to eight bytes, as is the offset of the
        // field.
        let $to = unsafe { crate::report::Field::new(&raw mut (*$entry.as_mut_ptr()).$field) };
        $fill;
    };
    (@field $entry:ident $record:ident $field:ident) => {
        crate::report::report!(@field $entry $record $field: $field);
    };
    ($record:ident { $($field:ident $(($to:ident))? $(: $value:expr)?),* $(,)? }) => {{
        // Never called: a struct expression does not compile unless it names every field.
        let _ = |all: $record| $record { header: all.header, $($field: all.$field),* };
        let entry = crate::report::Entry::<$record>::reserve()?;
        crate::report::report!(@field entry $record header: crate::report::Entry::<$record>::header());
        $(crate::report::report!(@field entry $record $field $(($to))? $(: $value)?);)*
        // SAFETY: the struct expression above proves that the list names every field.
        unsafe { entry.submit() };
        Ok(())
    }};
}
pub(crate) use report;

/// As [`report!`], for an event that the running task caused: charges it to the budget of the task's source
/// first, and returns from the function with [`Skip::Throttled`] if that is exhausted.
macro_rules! report_charged {
    ($($record:tt)*) => {{
        crate::origin::charge()?;
        crate::report::report!($($record)*)
    }};
}
pub(crate) use report_charged;

/// A field of bytes that is filled in place.
pub(crate) struct Field<'a, const N: usize>(&'a mut MaybeUninit<[u8; N]>);

impl<const N: usize> Field<'_, N> {
    /// # Safety
    /// `field` points into a reserved record and is aligned to eight bytes.
    #[inline(always)]
    pub(crate) unsafe fn new(field: *mut [u8; N]) -> Self {
        // SAFETY: by the caller.
        Self(unsafe { &mut *field.cast() })
    }

    /// Writes an empty text.
    #[inline(always)]
    pub(crate) fn empty(mut self) {
        self.clear();
    }

    #[inline(always)]
    fn clear(&mut self) {
        const { assert!(N > 0) };
        // SAFETY: the field has at least one byte.
        unsafe { self.0.as_mut_ptr().cast::<u8>().write(0) };
    }

    /// Copies a text from user memory, truncated to the field. The text is empty if `from` cannot be read.
    #[inline(always)]
    pub(crate) fn user_text(mut self, from: u64) {
        self.clear();
        if get(&HAVE_PROBE_READ) != 0 {
            // SAFETY: the field has `N` bytes; the helper checks the source and ends the text with a NUL.
            unsafe { bpf_probe_read_user_str(self.0.as_mut_ptr().cast(), N as u32, from as *const _) };
        }
    }

    /// Copies a text from kernel memory, truncated to the field. The text is empty if `from` cannot be read.
    #[inline(always)]
    pub(crate) fn kernel_text(mut self, from: u64) {
        self.clear();
        if get(&HAVE_PROBE_READ) != 0 {
            // SAFETY: the field has `N` bytes; the helper checks the source and ends the text with a NUL.
            unsafe { bpf_probe_read_kernel_str(self.0.as_mut_ptr().cast(), N as u32, from as *const _) };
        }
    }

    /// Copies the short name inside a directory entry, which has at least 32 bytes (`DNAME_INLINE_LEN`,
    /// include/linux/dcache.h).
    #[inline(always)]
    pub(crate) fn short_name(mut self, dentry: KernelPtr) {
        const { assert!(N > 32) };
        self.clear();
        let to = self.0.as_mut_ptr();
        // SAFETY: the field is aligned to eight bytes and has more than 32; `dentry` is a directory entry,
        // which contains the name.
        unsafe {
            for index in 0..4 {
                to.cast::<u64>().add(index).write(dentry.at(get(&DENTRY_SHORT_NAME) + index * 8));
            }
            to.cast::<u8>().add(32).write(0);
        }
    }

    /// Copies `len` bytes from user memory, truncated to the field. Returns the number of bytes copied.
    #[inline(always)]
    pub(crate) fn user_bytes(self, from: u64, len: u64) -> Result<u32, Skip> {
        let len = if len > N as u64 { N as u64 } else { len } as u32;
        // SAFETY: the field has `N` bytes, and `len` is at most that; the helper checks the source.
        let error = unsafe { bpf_probe_read_user(self.0.as_mut_ptr().cast(), len, from as *const _) };
        if error == 0 { Ok(len) } else { Err(Skip::Unreadable) }
    }

    /// Copies `len` bytes from kernel memory, truncated to the field. Returns the number of bytes copied.
    #[inline(always)]
    pub(crate) fn kernel_bytes(self, from: *const u8, len: u64) -> Result<u32, Skip> {
        let len = if len > N as u64 { N as u64 } else { len } as u32;
        // SAFETY: the field has `N` bytes, and `len` is at most that; the helper checks the source.
        let error = unsafe { bpf_probe_read_kernel(self.0.as_mut_ptr().cast(), len, from.cast()) };
        if error == 0 { Ok(len) } else { Err(Skip::Unreadable) }
    }

    /// Writes `pairs` of bytes, followed by four zero bytes.
    #[inline(always)]
    pub(crate) fn pairs<const M: usize>(self, pairs: &[u16; M]) {
        const { assert!(M * 2 + 4 == N && M.is_multiple_of(2)) };
        let to = self.0.as_mut_ptr().cast::<u16>();
        // SAFETY: the field is aligned to eight bytes and has room for all pairs and four bytes. Volatile,
        // because the compiler would replace the loop by a call.
        unsafe {
            for (index, pair) in pairs.iter().enumerate() {
                to.add(index).write_volatile(*pair);
            }
            to.add(M).cast::<u32>().write(0);
        }
    }
}
