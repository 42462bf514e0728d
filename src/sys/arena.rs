//! Block buffers: one mapping, handed out as owning slots.
/// Placeholder until the arena lands.
#[derive(Debug)]
pub struct Slot;
/// See [`Slot`].
#[derive(Debug)]
pub struct Arena;
/// See [`Slot`].
#[derive(Debug)]
pub enum ArenaKind {}
