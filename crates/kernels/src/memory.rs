//! A global allocator that keeps large blocks for the next tensors of their size.
//!
//! Every tensor is a fresh buffer, and the system maps, zeroes and unmaps the pages of a large one each time: a fifth to a third of a
//! training step. Blocks that are given back wait here instead. What waits never raises the process's peak: before a new block is taken
//! from the system, waiting ones are returned until everything together is no more than what was once in use.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, PoisonError};

/// Smaller blocks are the system allocator's own business.
const LEAST_BYTES: usize = 256 * 1024;
/// What may wait beyond the most that was ever in use: batches differ in length, and pages that come and go cost more than the work on
/// them.
const SLACK_BYTES: usize = 96 << 20;
/// Blocks that ask for large pages: passes over them are bound by memory, and take up to a third less time. Smaller ones come and go with
/// the batches, and clearing whole large pages for a part of them costs more than it saves.
#[cfg(target_os = "linux")]
const LARGE_BYTES: usize = 16 << 20;
/// Each doubling of the size is cut into so many classes; a block has the size of its class.
const STEPS: usize = 8;
const CLASSES: usize = (usize::BITS - LEAST_BYTES.trailing_zeros()) as usize * STEPS;
/// A cache line; larger alignments are the system allocator's.
const ALIGN: usize = 64;

/// Use it as `#[global_allocator] static MEMORY: Recycler = Recycler;`. All of them share one stock of blocks.
pub struct Recycler;

static STOCK: Stock = Stock::new(SLACK_BYTES);

/// Returns to the system what waits for the next tensors, and what the system's allocator keeps of smaller blocks. Between two pieces
/// of work of different shapes: what the first one kept would stand beside what the second one needs.
pub fn release() {
    STOCK.release();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

struct Stock(Mutex<Shelves>);

/// The head of a waiting block.
struct Waiting {
    next: Option<NonNull<Waiting>>,
}

struct Shelves {
    waiting: [Option<NonNull<Waiting>>; CLASSES],
    /// Bytes that may wait beyond the peak.
    slack: usize,
    /// Bytes of blocks in use, of waiting ones, and the most that was ever in use.
    used: usize,
    kept: usize,
    peak: usize,
}

// SAFETY: the waiting blocks belong to the shelves alone.
unsafe impl Send for Shelves {}

/// The class of a size and the size of its blocks; none for sizes and alignments that are not kept.
fn class(layout: &Layout) -> Option<(usize, usize)> {
    let size = layout.size();
    if size < LEAST_BYTES || layout.align() > ALIGN || size > isize::MAX as usize / 2 {
        return None;
    }
    // The largest power of two below the size, and the steps above it, rounded up.
    let base = 1usize << (usize::BITS - 1 - (size - 1).leading_zeros());
    let base = base.max(LEAST_BYTES);
    let step = base / STEPS;
    let above = size.saturating_sub(base).div_ceil(step);
    let doubling = (base.trailing_zeros() - LEAST_BYTES.trailing_zeros()) as usize;
    Some((doubling * STEPS + above, base + above * step))
}

/// Blocks from the system: pages of their own, which go back whole. Between other blocks of the system allocator's heap a block that was
/// given back stays in memory, and the process's peak grows with every class that it takes after another.
mod pages {
    #[cfg(not(unix))]
    use std::alloc::{GlobalAlloc, Layout, System};

    /// `size` bytes of zeros, null where there are none.
    ///
    /// # Safety
    /// The size is not zero.
    #[cfg(unix)]
    pub(super) unsafe fn take(size: usize) -> *mut u8 {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new private map, at a place that the system chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0) };
        if start == libc::MAP_FAILED {
            return std::ptr::null_mut();
        }
        // A hint, whose refusal changes nothing.
        #[cfg(target_os = "linux")]
        if size >= super::LARGE_BYTES {
            // SAFETY: the map is ours alone.
            unsafe { libc::madvise(start, size, libc::MADV_HUGEPAGE) };
        }
        start.cast()
    }

    /// Gives them back.
    ///
    /// # Safety
    /// They came from [`take`] with that size, and nobody uses them.
    #[cfg(unix)]
    pub(super) unsafe fn give_back(start: *mut u8, size: usize) {
        // SAFETY: the caller's promise. It fails for addresses that are no map alone.
        unsafe { libc::munmap(start.cast(), size) };
    }

    #[cfg(not(unix))]
    pub(super) unsafe fn take(size: usize) -> *mut u8 {
        match Layout::from_size_align(size, super::ALIGN) {
            // SAFETY: the caller's promise.
            Ok(layout) => unsafe { System.alloc_zeroed(layout) },
            Err(_) => std::ptr::null_mut(),
        }
    }

    #[cfg(not(unix))]
    pub(super) unsafe fn give_back(start: *mut u8, size: usize) {
        if let Ok(layout) = Layout::from_size_align(size, super::ALIGN) {
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(start, layout) }
        }
    }
}

impl Shelves {
    fn take(&mut self, class: usize, size: usize) -> Option<NonNull<Waiting>> {
        let shelf = self.waiting.get_mut(class)?;
        let block = (*shelf)?;
        // SAFETY: a waiting block was initialised by `put` and is no one else's.
        *shelf = unsafe { block.as_ref() }.next;
        self.kept -= size;
        Some(block)
    }

    fn put(&mut self, class: usize, size: usize, block: NonNull<Waiting>) {
        if let Some(shelf) = self.waiting.get_mut(class) {
            // SAFETY: the block is at least `LEAST_BYTES` long, aligned, and was given back.
            unsafe { block.write(Waiting { next: *shelf }) };
            *shelf = Some(block);
            self.kept += size;
        }
    }

    /// Returns waiting blocks, the largest first, until a new one of `size` fits below what was once in use.
    fn make_room(&mut self, size: usize) {
        let limit = (self.peak.max(self.used + size) + self.slack).saturating_sub(size);
        self.shrink(limit);
    }

    /// Returns waiting blocks, the largest first, until no more than `limit` bytes are in use or wait.
    fn shrink(&mut self, limit: usize) {
        for class in (0..CLASSES).rev() {
            let bytes = size_of_class(class);
            while self.used + self.kept > limit {
                let Some(old) = self.take(class, bytes) else { break };
                // SAFETY: it came from the system with the size of its class.
                unsafe { pages::give_back(old.as_ptr().cast(), bytes) };
            }
        }
    }
}

/// The size of a class's blocks; the inverse of [`class`].
fn size_of_class(class: usize) -> usize {
    let base = LEAST_BYTES.checked_shl((class / STEPS) as u32).unwrap_or(usize::MAX);
    base.saturating_add(base / STEPS * (class % STEPS))
}

impl Stock {
    const fn new(slack: usize) -> Self {
        Self(Mutex::new(Shelves { slack, waiting: [None; CLASSES], used: 0, kept: 0, peak: 0 }))
    }

    /// A block of the class, and whether it is fresh from the system.
    fn get(&self, class: usize, size: usize, zeroed: bool) -> *mut u8 {
        let mut shelves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = shelves.take(class, size);
        if old.is_none() {
            shelves.make_room(size);
        }
        shelves.used += size;
        shelves.peak = shelves.peak.max(shelves.used);
        drop(shelves);
        let new = match old {
            Some(old) => {
                let start = old.as_ptr().cast::<u8>();
                if zeroed {
                    // SAFETY: the block has `size` bytes and is no one else's.
                    unsafe { start.write_bytes(0, size) };
                }
                start
            }
            // SAFETY: the size is not zero.
            None => unsafe { pages::take(size) },
        };
        if new.is_null() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).used -= size;
        }
        new
    }

    /// Returns all that waits, and forgets how much was once in use.
    fn release(&self) {
        let mut shelves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = shelves.used;
        shelves.shrink(used);
        shelves.peak = used;
    }
}

// SAFETY: blocks come from the system with the size of their class, which is no smaller and no less aligned than what was
// asked for, and are in use once at a time; everything else is passed on.
unsafe impl GlobalAlloc for Stock {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(&layout) {
            Some((class, size)) => self.get(class, size, false),
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match class(&layout) {
            Some((class, size)) => self.get(class, size, true),
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        match (class(&layout), NonNull::new(start.cast::<Waiting>())) {
            (Some((class, size)), Some(block)) => {
                let mut shelves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                shelves.used -= size;
                shelves.put(class, size, block);
            }
            // SAFETY: the caller's promise.
            _ => unsafe { System.dealloc(start, layout) },
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else { return null_mut() };
        match (class(&layout), class(&new_layout)) {
            // SAFETY: the caller's promise.
            (None, None) => unsafe { System.realloc(start, layout, new_size) },
            (old, new) if old == new => start,
            _ => {
                // SAFETY: the new block is as long as the shorter of both, and the old one is given back with its own layout.
                unsafe {
                    let new = self.alloc(new_layout);
                    if !new.is_null() {
                        new.copy_from_nonoverlapping(start, layout.size().min(new_size));
                        self.dealloc(start, layout);
                    }
                    new
                }
            }
        }
    }
}

// SAFETY: as [`Stock`], to which everything is passed on.
unsafe impl GlobalAlloc for Recycler {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { STOCK.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { STOCK.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { STOCK.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { STOCK.realloc(start, layout, new_size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 4).unwrap()
    }

    #[test]
    fn classes_hold_what_they_are_asked_for_and_little_more() {
        assert_eq!(class(&layout(LEAST_BYTES - 1)), None);
        assert_eq!(class(&Layout::from_size_align(LEAST_BYTES, 4096).unwrap()), None);
        for size in (LEAST_BYTES..10 * LEAST_BYTES).step_by(4093).chain([1 << 30, (1 << 30) + 1, (1 << 40) - 1]) {
            let (class, bytes) = class(&layout(size)).unwrap();
            assert!(bytes >= size && bytes <= size + size / STEPS + 1, "{size}: {bytes}");
            assert_eq!(size_of_class(class), bytes, "{size}");
        }
    }

    #[test]
    fn a_block_comes_back_zeroed_if_asked_and_the_peak_is_kept() {
        let memory = Stock::new(0);
        let (small, large) = (layout(LEAST_BYTES), layout(4 * LEAST_BYTES));
        // SAFETY: every block is used within its layout and given back once.
        unsafe {
            let a = memory.alloc(large);
            a.write_bytes(7, large.size());
            memory.dealloc(a, large);
            let b = memory.alloc_zeroed(large);
            assert_eq!(a, b, "the block is used again");
            assert!(std::slice::from_raw_parts(b, large.size()).iter().all(|x| *x == 0));
            memory.dealloc(b, large);
            // A block of another class: the waiting one would raise the peak.
            let c = memory.alloc(small);
            {
                let shelves = memory.0.lock().unwrap();
                assert!(shelves.used + shelves.kept <= shelves.peak, "{} + {} > {}", shelves.used, shelves.kept, shelves.peak);
                assert_eq!((shelves.used, shelves.peak), (small.size(), large.size()));
            }
            c.write_bytes(3, small.size());
            let d = memory.realloc(c, small, large.size());
            assert_eq!(std::slice::from_raw_parts(d, small.size()), vec![3; small.size()]);
            memory.dealloc(d, large);
        }
        memory.release();
        let shelves = memory.0.lock().unwrap();
        assert_eq!((shelves.used, shelves.kept, shelves.peak), (0, 0, 0));
        assert!(shelves.waiting.iter().all(Option::is_none));
    }
}
