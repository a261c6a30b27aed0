//! What every level's vectors promise.

use super::*;
use crate::cpu::cell::Cell;
use crate::element::Element;

/// Numbers of all kinds: ties between two bf16 and their neighbours, zeros, infinities, not-a-number.
fn numbers() -> Vec<f32> {
    let ties = (0..48u32).map(|i| f32::from_bits(0x3F80_7FFF + i / 3 * 0x1_0000 + i % 3));
    let signed = ties.enumerate().map(|(i, v)| if i % 2 == 0 { v } else { -v });
    let special = [0.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -1.0, 2.5e-10];
    signed.chain(special).collect()
}

kernel! {
    /// Compares the trait's methods with what they say, on a vector of `a` and one of `b`.
    unsafe fn check(level: Level, a: &[f32; MAX_LANES], b: &[f32; MAX_LANES]) = check_methods
}

unsafe fn check_methods<E: Cell, S: Simd>(level: Level, a: &[f32; MAX_LANES], b: &[f32; MAX_LANES]) {
    let check = |what: &str, vector: S, expected: &dyn Fn(f32, f32) -> f32, n: usize| {
        let mut got = [0.0; MAX_LANES];
        // SAFETY: as long as the longest vector.
        unsafe { vector.store_first(got.as_mut_ptr(), S::LANES) };
        for i in 0..S::LANES {
            let expected = if i < n { expected(a[i], b[i]) } else { 0.0 };
            let is_same = got[i] == expected || got[i].is_nan() && expected.is_nan();
            assert!(is_same, "{}, {what} of {} and {}: {}, not {expected}", level.name(), a[i], b[i], got[i]);
        }
    };
    let bf16 = |v: f32| Bf16::of(v).get();
    let zero_unless = |is: bool, v: f32| if is { v } else { 0.0 };
    let larger = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) };
    let exact = |v: f32| if v.is_finite() { bf16(v) * bf16(v) } else { f32::NAN };
    // SAFETY: all pointers are to as many numbers as the longest vector has; the caller has the level.
    unsafe {
        let (x, y, all) = (S::load(a.as_ptr()), S::load(b.as_ptr()), S::LANES);
        check("relu", x.relu(), &|a, _| if a.is_nan() { a } else { a.max(0.0) }, all);
        check("where_positive", x.where_positive(y), &|a, b| zero_unless(b > 0.0, a), all);
        check("max_or_nan", x.max_or_nan(y), &larger, all);
        let (same, other) = x.split_by_equal(x, y);
        check("equal", same, &|a, b| zero_unless(a == b, a), all);
        check("unequal", other, &|a, b| zero_unless(a != b, a), all);
        check("add and sub", x.add(y).sub(x.add(S::zero())), &|a, b| a + b - a, all);
        check("fma", S::splat(&raw const b[0]).fma(x, S::zero()), &|a, _| a * 0.0 + b[0], all);
        for n in 0..=S::LANES {
            let (rows, mut turned) = ([*a, *b].concat().repeat(MAX_LANES), [7.0; MAX_LANES * MAX_LANES]);
            S::turn(rows.as_ptr(), MAX_LANES + 3, turned.as_mut_ptr(), MAX_LANES, n);
            for (at, &got) in turned.iter().enumerate() {
                let (j, i) = (at / MAX_LANES, at % MAX_LANES);
                let expected = if j < n && i < S::LANES { rows[i * (MAX_LANES + 3) + j] } else { 7.0 };
                assert!(got.to_bits() == expected.to_bits(), "{}, {n} turned", level.name());
            }
            let mut rounded = [[Bf16(0); MAX_LANES]; 2];
            x.narrow_first(rounded[0].as_mut_ptr(), n);
            y.narrow_first(rounded[1].as_mut_ptr(), n);
            let [low, high] = [rounded[0].as_ptr(), rounded[1].as_ptr()];
            check("rounded", S::widen_first(low, all), &|a, _| bf16(a), n);
            check("some widened", S::widen_first(high, n), &|_, b| bf16(b), n);
            let [first, second] = S::widen_first(low, n).paired(S::widen_first(high, n)).split();
            check("first of pairs", first, &|a, _| bf16(a), n);
            check("second of pairs", second, &|_, b| bf16(b), n);
            check("some loaded", S::load_first(b.as_ptr(), n), &|_, b| b, n);
            let mut some = [0.0; MAX_LANES];
            x.store_first(some.as_mut_ptr(), n);
            check("some stored", S::load(some.as_ptr()), &|a, _| a, n);
            if !S::HAS_PAIRS {
                continue;
            }
            let pair = |a, b| f32::from_bits(u32::from(Bf16::of(a).0) | u32::from(Bf16::of(b).0) << 16);
            check("pairs", S::pairs(low, high, n), &pair, n);
            if a.iter().chain(b).all(|v| v.abs() < 1e18) {
                let pairs = S::pairs(low, high, n);
                check("dot_pairs", S::zero().dot_pairs(pairs, pairs), &|a, b| exact(a) + exact(b), n);
            }
        }
    }
}

#[test]
fn vectors_of_every_level_do_what_they_say() {
    let numbers = numbers();
    let at = |first: usize| std::array::from_fn(|i| numbers[(first + i) % numbers.len()]);
    for level in Level::available() {
        for first in 0..numbers.len() {
            // SAFETY: the machine has the level; the vectors are whole.
            unsafe {
                check::<f32>(level, level, &at(first), &at(first + 7));
                check::<Bf16>(level, level, &at(first), &at(first));
            }
        }
    }
}
