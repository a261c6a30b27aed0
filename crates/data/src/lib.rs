//! Image sources, splits, augmentations and the loader: bytes in, pixels out. Knows no tensors.
//!
//! The way of an image:
//! 1. [`source`]: a folder, a list, CIFAR or IDX files become a numbered [`source::Source`].
//! 2. [`dataset`]: a [`Dataset`] is a source and the indices in use; [`splits`] makes and reads such indices.
//! 3. [`augment`]: a recipe draws parameters and turns a decoded image into a square view.
//! 4. [`loader`]: threads do this ahead of time, and batches arrive in an order that only the seed decides.
//!
//! [`mod@pack`] writes a data set once into one file that needs no decoding, [`mod@inspect`] looks at one without training,
//! [`rng`] holds the one generator behind everything random.

pub mod augment;
pub mod dataset;
pub mod error;
pub mod inspect;
pub mod loader;
mod ordered;
pub mod pack;
pub mod rng;
pub mod source;
pub mod splits;

pub use dataset::Dataset;
pub use error::DataError;
pub use inspect::{Inspection, inspect};
pub use loader::{Batch, Loader, LoaderSpec, Order, Shard, Skipped};
pub use source::{OpenOptions, Part, RgbImage, Source};
