//! From predictions to the numbers of a result: class accuracies, Many/Medium/Few and the two spreads.
//!
//! Source: SDCLR paper, section 4.1 and its published evaluation. Standard deviations are of the population.
//! Deliberate difference: a class without test images is left out of a mean; there it would divide by zero.

use sdclr_records::results::{Group, GroupAccuracy};

/// How classes are put into groups by their long-tail counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupRule {
    /// CIFAR's: the C/3 (rounded down) classes with the lowest counts are Few, the next C/3 Medium, the rest Many.
    /// Among equal counts the lower label counts as the smaller.
    Thirds,
    /// ImageNet's: above `many_above` training images Many, below `few_below` Few, else Medium.
    Thresholds {
        /// 100 in the literature.
        many_above: usize,
        /// 20 in the literature.
        few_below: usize,
    },
}

impl GroupRule {
    /// The thresholds of the ImageNet-LT literature: Many above 100 images, Few below 20.
    pub const IMAGENET: Self = Self::Thresholds { many_above: 100, few_below: 20 };
}

/// Every accuracy of one test, in percent.
#[derive(Debug, Clone, PartialEq)]
pub struct Accuracies {
    /// Share of images classified rightly.
    pub top1: f64,
    /// Accuracy on each class's images; `None` for a class without any. `[C]`
    pub class_accuracy: Vec<Option<f64>>,
    /// Mean of the class accuracies.
    pub all: f64,
    /// Population standard deviation of the class accuracies.
    pub class_std: f64,
    /// The groups, where a long tail is given.
    pub groups: Option<GroupAccuracy>,
}

/// Mean and population standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanStd {
    /// Arithmetic mean.
    pub mean: f64,
    /// Square root of the mean squared deviation.
    pub std: f64,
}

/// Everything that is measured on one test set.
///
/// `labels` and `predictions` are class indices below `n_classes`, one an image; `tail` gives each class's count in
/// the long-tail split (`[C]`) and the rule that groups by it. Without any image every mean is NaN.
///
/// # Panics
/// If lengths differ or a label is not below `n_classes`.
pub fn accuracies(
    labels: &[usize],
    predictions: &[usize],
    n_classes: usize,
    tail: Option<(&[usize], GroupRule)>,
) -> Accuracies {
    let class_accuracy = class_accuracy(labels, predictions, n_classes);
    let n_right = labels.iter().zip(predictions).filter(|(label, guess)| label == guess).count();
    let present: Vec<f64> = class_accuracy.iter().copied().flatten().collect();
    let over_classes = mean_std(&present);
    Accuracies {
        top1: 100.0 * n_right as f64 / labels.len() as f64,
        all: over_classes.mean,
        class_std: over_classes.std,
        groups: tail.map(|(counts, rule)| group_accuracy(&class_accuracy, counts, rule)),
        class_accuracy,
    }
}

/// Accuracy on each class's images, in percent; `None` for a class without any. `[C]`
///
/// # Panics
/// If lengths differ or a label is not below `n_classes`.
pub fn class_accuracy(labels: &[usize], predictions: &[usize], n_classes: usize) -> Vec<Option<f64>> {
    assert_eq!(labels.len(), predictions.len(), "one prediction an image");
    let (mut n_right, mut n_images) = (vec![0_usize; n_classes], vec![0_usize; n_classes]);
    for (&label, &guess) in labels.iter().zip(predictions) {
        n_images[label] += 1;
        n_right[label] += usize::from(label == guess);
    }
    let share = |(&right, &all): (&usize, &usize)| (all > 0).then(|| 100.0 * right as f64 / all as f64);
    n_right.iter().zip(&n_images).map(share).collect()
}

/// Classes that top-5 accuracy lets a guess name; with no more classes than that it says nothing.
pub const TOP5: usize = 5;

/// Top-5 accuracy in percent; `None` where there are no more classes than five.
pub fn top5(n_right: usize, n_images: usize, n_classes: usize) -> Option<f64> {
    (n_classes > TOP5).then(|| 100.0 * n_right as f64 / n_images as f64)
}

/// How many classes come before `label` when sorted by score, the first among equals first; a label whose score is not a
/// number comes after all. Rank 0 is the prediction, a rank below [`TOP5`] is right by top-5.
///
/// # Panics
/// If `label` is not below the number of scores.
pub fn rank(scores: &[f32], label: usize) -> usize {
    let own = scores[label];
    if own.is_nan() {
        return scores.len();
    }
    scores.iter().enumerate().filter(|(i, score)| **score > own || (**score == own && *i < label)).count()
}

/// The group of each class. `[C]`
pub fn class_groups(class_counts: &[usize], rule: GroupRule) -> Vec<Group> {
    match rule {
        GroupRule::Thirds => thirds(class_counts),
        GroupRule::Thresholds { many_above, few_below } => class_counts
            .iter()
            .map(|&count| match count {
                _ if count > many_above => Group::Many,
                _ if count < few_below => Group::Few,
                _ => Group::Medium,
            })
            .collect(),
    }
}

/// Means of the groups' class accuracies, and their spread.
///
/// # Panics
/// If `class_accuracy` and `class_counts` differ in length.
pub fn group_accuracy(class_accuracy: &[Option<f64>], class_counts: &[usize], rule: GroupRule) -> GroupAccuracy {
    assert_eq!(class_accuracy.len(), class_counts.len(), "one count a class");
    let class_groups = class_groups(class_counts, rule);
    let mean_of = |group: Group| {
        let members = class_groups.iter().zip(class_accuracy).filter(|(g, _)| **g == group);
        let present: Vec<f64> = members.filter_map(|(_, accuracy)| *accuracy).collect();
        (!present.is_empty()).then(|| mean_std(&present).mean)
    };
    let (many, medium, few) = (mean_of(Group::Many), mean_of(Group::Medium), mean_of(Group::Few));
    let std = many.zip(medium).zip(few).map(|((a, b), c)| mean_std(&[a, b, c]).std);
    GroupAccuracy { many, medium, few, std, class_counts: class_counts.to_vec(), class_groups }
}

/// Mean and population standard deviation; both NaN for no value. Over splits: one value a split.
pub fn mean_std(values: &[f64]) -> MeanStd {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    MeanStd { mean, std: variance.sqrt() }
}

fn thirds(class_counts: &[usize]) -> Vec<Group> {
    let mut ascending: Vec<usize> = (0..class_counts.len()).collect();
    ascending.sort_by_key(|&class_idx| class_counts[class_idx]);
    let third = class_counts.len() / 3;
    let mut groups = vec![Group::Many; class_counts.len()];
    for (rank, class_idx) in ascending.into_iter().enumerate() {
        if rank < third {
            groups[class_idx] = Group::Few;
        } else if rank < 2 * third {
            groups[class_idx] = Group::Medium;
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_accuracies_are_percentages_and_absent_for_empty_classes() {
        let found = class_accuracy(&[0, 0, 0, 0, 1, 1], &[0, 0, 0, 1, 1, 0], 3);
        assert_eq!(found, [Some(75.0), Some(50.0), None]);
    }

    #[test]
    fn rank_counts_what_sorts_before_the_label() {
        let scores = [0.5, 2.0, 2.0, -1.0, f32::NAN];
        assert_eq!([0, 1, 2, 3, 4].map(|label| rank(&scores, label)), [2, 0, 1, 3, 5]);
        // Equal scores never make more than five labels right.
        assert_eq!((0..8).filter(|&label| rank(&[1.0; 8], label) < TOP5).count(), 5);
    }

    #[test]
    fn ten_classes_fall_into_four_many_three_medium_three_few() {
        // Split 1 of CIFAR-10-LT.
        let counts = [348, 969, 125, 208, 1617, 75, 4500, 581, 2697, 45];
        use Group::{Few, Many, Medium};
        let expected = [Medium, Many, Few, Medium, Many, Few, Many, Medium, Many, Few];
        assert_eq!(class_groups(&counts, GroupRule::Thirds), expected);
    }

    #[test]
    fn among_equal_counts_the_lower_label_is_the_smaller() {
        use Group::{Few, Many, Medium};
        assert_eq!(class_groups(&[5, 5, 5], GroupRule::Thirds), [Few, Medium, Many]);
        assert_eq!(class_groups(&[5, 5], GroupRule::Thirds), [Many, Many]);
    }

    #[test]
    fn imagenet_thresholds_are_exclusive_at_the_ends() {
        use Group::{Few, Many, Medium};
        let found = class_groups(&[101, 100, 20, 19], GroupRule::IMAGENET);
        assert_eq!(found, [Many, Medium, Medium, Few]);
    }

    #[test]
    fn the_published_row_gives_the_published_std() {
        // CIFAR-10-LT few-shot groups of SDCLR in the paper: 76.57 / 70.01 / 62.79; population std by hand:
        // mean 69.79, deviations 6.78, 0.22, -7.00, squares 45.9684 + 0.0484 + 49 = 95.0168, /3 = 31.6723.
        let std = mean_std(&[76.57, 70.01, 62.79]).std;
        assert!((std - 31.672_266_7_f64.sqrt()).abs() < 1e-6, "{std}");
    }

    #[test]
    fn one_test_gives_every_number() {
        // Three classes of 2, 4 and 4 images with 2, 3 and 1 right: 100, 75, 25 %.
        let labels = [0, 0, 1, 1, 1, 1, 2, 2, 2, 2];
        let predictions = [0, 0, 1, 1, 1, 2, 2, 0, 0, 0];
        let found = accuracies(&labels, &predictions, 3, Some((&[100, 10, 1], GroupRule::Thirds)));
        assert_eq!(found.top1, 60.0);
        assert!((found.all - 200.0 / 3.0).abs() < 1e-12);
        // Deviations 33.3, 8.3, -41.7: squares 1111.1 + 69.4 + 1736.1 = 2916.7, /3 = 972.2.
        assert!((found.class_std - (8750.0_f64 / 9.0).sqrt()).abs() < 1e-9);
        let groups = found.groups.expect("a tail was given");
        assert_eq!((groups.many, groups.medium, groups.few), (Some(100.0), Some(75.0), Some(25.0)));
        assert!((groups.std.expect("all there") - found.class_std).abs() < 1e-12, "one class a group");
    }

    #[test]
    fn an_empty_group_has_no_mean_and_no_std() {
        let found = group_accuracy(&[Some(50.0), None], &[200, 5], GroupRule::IMAGENET);
        assert_eq!((found.many, found.medium, found.few, found.std), (Some(50.0), None, None, None));
    }
}
