//! Long-tailed, balanced and few-shot subsets: made from labels and a seed, written and read as files.
//!
//! Source: the paper's §4.1. All subsets of one [`SplitFamily`] are prefixes of one shuffled list per class, as those of
//! the published splits are, so a few-shot set lies inside the balanced one, and head classes of the long tail contain
//! it. Only integer arithmetic decides, so a seed gives the same files on every machine.

mod files;
mod npy;
mod shapes;

pub use files::{read_indices, read_list, write_indices, write_list};
pub use shapes::{long_tail_counts, pareto_counts, step_counts};

use crate::error::DataError;
use crate::rng::{Purpose, Rng};

/// Deals counts, largest first, to classes in a random order: the result is by label.
pub fn in_random_class_order(counts: &[usize], seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    Rng::new(seed, Purpose::SplitClassOrder, 0, 0, 0).shuffle(&mut order);
    let mut by_label = vec![0; counts.len()];
    for (place, label) in order.into_iter().enumerate() {
        by_label[label] = counts[place];
    }
    by_label
}

/// One shuffled list of images per class, from which every subset takes the first ones.
#[derive(Clone, Debug)]
pub struct SplitFamily {
    by_class: Vec<Vec<usize>>,
}

impl SplitFamily {
    /// The lists of all images, given their labels.
    pub fn new(labels: &[u32], seed: u64) -> Self {
        Self::among(labels, 0..labels.len(), seed)
    }

    /// The lists of some images, by index; `labels` are those of all images.
    ///
    /// # Panics
    /// If an index has no label.
    pub fn among(labels: &[u32], indices: impl IntoIterator<Item = usize>, seed: u64) -> Self {
        let n_classes = labels.iter().max().map_or(0, |largest| *largest as usize + 1);
        let mut by_class = vec![Vec::new(); n_classes];
        for index in indices {
            by_class[labels[index] as usize].push(index);
        }
        for (class_idx, list) in by_class.iter_mut().enumerate() {
            list.sort_unstable(); // the order in which a caller lists the indices must not matter
            Rng::new(seed, Purpose::SplitImages, 0, class_idx as u64, 0).shuffle(list);
        }
        Self { by_class }
    }

    /// Number of classes.
    pub fn n_classes(&self) -> usize {
        self.by_class.len()
    }

    /// The first `counts[label]` images of each class, as ascending indices.
    ///
    /// # Errors
    /// If a class has fewer images, or the number of classes differs.
    pub fn take(&self, counts: &[usize]) -> Result<Vec<usize>, DataError> {
        if counts.len() != self.n_classes() {
            let (given, here) = (counts.len(), self.n_classes());
            return Err(DataError::Setting(format!("{given} class counts for a data set of {here} classes")));
        }
        let mut indices = Vec::with_capacity(counts.iter().sum());
        for (label, (list, count)) in self.by_class.iter().zip(counts).enumerate() {
            let Some(first) = list.get(..*count) else {
                let n = list.len();
                let problem = format!("class {label} has {n} images, {count} are wanted; lower the largest count");
                return Err(DataError::Setting(problem));
            };
            indices.extend_from_slice(first);
        }
        indices.sort_unstable();
        Ok(indices)
    }

    /// The first `per_class` images of every class, as ascending indices: balanced and few-shot sets.
    ///
    /// # Errors
    /// If a class has fewer images.
    pub fn balanced(&self, per_class: usize) -> Result<Vec<usize>, DataError> {
        self.take(&vec![per_class; self.n_classes()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(n_classes: u32, per_class: u32) -> Vec<u32> {
        (0..n_classes * per_class).map(|i| i % n_classes).collect()
    }

    #[test]
    fn subsets_of_a_family_nest() {
        let labels = labels(10, 50);
        let family = SplitFamily::new(&labels, 1);
        let counts = in_random_class_order(&long_tail_counts(10, 50, 0.02), 1);
        let (tail, balanced, few) =
            (family.take(&counts).unwrap(), family.balanced(10).unwrap(), family.balanced(1).unwrap());
        assert_eq!(tail.len(), counts.iter().sum::<usize>());
        assert!(few.iter().all(|i| balanced.contains(i) && tail.contains(i)));
        for (label, count) in counts.iter().enumerate() {
            assert_eq!(tail.iter().filter(|i| labels[**i] == label as u32).count(), *count);
        }
    }

    #[test]
    fn a_seed_decides_the_images_and_the_class_order() {
        let labels = labels(4, 25);
        let first = |seed| SplitFamily::new(&labels, seed).balanced(5).unwrap();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
        let order = |seed| in_random_class_order(&[8, 4, 2, 1], seed);
        assert_eq!(order(5), order(5));
        assert!((0..9).any(|seed| order(seed) != order(5)));
        let mut sorted = order(5);
        sorted.sort_unstable();
        assert_eq!(sorted, [1, 2, 4, 8]);
    }

    #[test]
    fn images_outside_the_candidates_are_never_taken() {
        let labels = labels(2, 50);
        let held_out = SplitFamily::new(&labels, 3).balanced(10).unwrap();
        let rest = (0..100).rev().filter(|i| !held_out.contains(i));
        let family = SplitFamily::among(&labels, rest, 3);
        assert!(family.balanced(40).unwrap().iter().all(|i| !held_out.contains(i)));
        let message = family.balanced(41).unwrap_err().to_string();
        assert!(message.contains("class 0 has 40 images, 41 are wanted"), "{message}");
    }

    #[test]
    fn splits_are_the_same_on_every_machine() {
        let family = SplitFamily::new(&labels(3, 7), 2021);
        assert_eq!(family.balanced(2).unwrap(), [0, 4, 9, 11, 19, 20]);
        assert_eq!(in_random_class_order(&[9, 5, 1], 2021), [1, 5, 9]);
    }
}
