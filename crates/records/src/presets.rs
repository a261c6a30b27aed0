//! Named starting points: the recipes of the SDCLR paper as its published implementation runs them, and a quick one.
//!
//! A preset is a partial config; its `[when.simclr]` and `[when.sdclr]` tables apply to one method only, and `[experiment]`
//! says how it is judged (see [`crate::experiment`]).

/// Every preset: name and TOML text.
pub const PRESETS: &[(&str, &str)] = &[
    ("demo", include_str!("presets/demo.toml")),
    ("cifar10-lt", include_str!("presets/cifar10-lt.toml")),
    ("cifar100-lt", include_str!("presets/cifar100-lt.toml")),
    ("imagenet100-lt", include_str!("presets/imagenet100-lt.toml")),
    ("imagenet-lt", include_str!("presets/imagenet-lt.toml")),
    ("fashion-mnist-lt", include_str!("presets/fashion-mnist-lt.toml")),
];

/// The names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}
