//! The order in which a backend asks for slots.

use std::net::IpAddr;

use lb_common::hash::finish;

use crate::desired::BackendId;

/// All slots of a ring, in an order that depends on the backend alone.
///
/// The paper walks in steps of equal length. Of two backends with related steps one then follows the other
/// around the ring, and when one of a few leaves, several percent of the slots move that need not. Here the
/// *j*-th slot is `skip × (start + j)⁻¹ + offset` modulo M (an inversive generator: Eichenauer and Lehn,
/// 1986), where such relations don't exist.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permutation {
    position: u32,
    skip: u32,
    offset: u32,
}

impl Permutation {
    /// The order of `backend` in a ring of a size.
    pub(super) fn new(backend: &BackendId, slots: u32) -> Self {
        let hash = identity_hash(backend);
        let below = |salt: u64, bound: u32| (((finish(hash ^ salt) >> 32) * u64::from(bound)) >> 32) as u32;
        Self {
            position: below(0x9e37_79b9_7f4a_7c15, slots),
            skip: below(0xd1b5_4a32_d192_ed03, slots - 1) + 1,
            offset: below(0x8cb9_2ba7_2f3d_8dd7, slots),
        }
    }

    /// The next slot. After M calls every slot has been returned once.
    #[inline]
    pub(super) fn next(&mut self, field: &Field) -> usize {
        let inverse = field.inverses[self.position as usize];
        self.position = if self.position + 1 == field.modulus { 0 } else { self.position + 1 };
        field.reduce(u64::from(inverse) * u64::from(self.skip) + u64::from(self.offset)) as usize
    }
}

/// A hash of everything that identifies a backend. Rings depend on it: it must never change.
fn identity_hash(backend: &BackendId) -> u64 {
    let (address, family) = match backend.address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 4u64),
        IpAddr::V6(v6) => (u128::from(v6), 6),
    };
    let rest = family << 32 | u64::from(backend.protocol.ip_number()) << 16 | u64::from(backend.port);
    let mut hash = 0x6b61_6e6d_6f6e;
    for word in [(address >> 64) as u64, address as u64, rest] {
        hash = finish(hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    hash
}

/// Arithmetic modulo a ring's size, which is prime.
#[derive(Debug)]
pub(super) struct Field {
    modulus: u32,
    /// ⌊2⁶⁴ / modulus⌋
    reciprocal: u64,
    /// The inverse of each number; that of 0 is 0.
    inverses: Vec<u32>,
}

impl Field {
    pub(super) fn new(modulus: u32) -> Self {
        let mut field = Self {
            modulus,
            reciprocal: ((1u128 << 64) / u128::from(modulus)) as u64,
            inverses: Vec::with_capacity(modulus as usize),
        };
        field.inverses.extend([0, 1]);
        // i⁻¹ = −⌊M / i⌋ × (M mod i)⁻¹, because M = ⌊M / i⌋ i + M mod i is 0 modulo M.
        for i in 2..modulus {
            let known = field.inverses[(modulus % i) as usize];
            let product = field.reduce(u64::from(modulus / i) * u64::from(known));
            field.inverses.push(modulus - product);
        }
        field
    }

    /// `value` modulo M, by Barrett's method: one multiplication instead of a division.
    #[inline]
    fn reduce(&self, value: u64) -> u32 {
        let quotient = ((u128::from(value) * u128::from(self.reciprocal)) >> 64) as u64;
        let rest = (value - quotient * u64::from(self.modulus)) as u32;
        if rest >= self.modulus { rest - self.modulus } else { rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Protocol;

    #[test]
    fn inverses_are_inverses() {
        let field = Field::new(4093);
        for number in 1..4093u32 {
            let product = u64::from(number) * u64::from(field.inverses[number as usize]);
            assert_eq!(product % 4093, 1, "{number}");
            assert_eq!(field.reduce(product), 1, "{number}");
        }
    }

    #[test]
    fn a_permutation_visits_every_slot_once() {
        let field = Field::new(251);
        let backend = BackendId { protocol: Protocol::Udp, address: "fd00::7".parse().unwrap(), port: 53 };
        let mut permutation = Permutation::new(&backend, 251);
        let mut seen = [false; 251];
        for _ in 0..251 {
            assert!(!std::mem::replace(&mut seen[permutation.next(&field)], true));
        }
    }
}
