//! Shapes of long tails: how many images each class has, the largest first.

/// Images per class of an exponential long tail: `n_i = int(n_max * imbalance^(i / (C - 1)))`.
///
/// `imbalance` is the smallest count over the largest, in (0, 1]: 0.01 for the paper's CIFAR splits. Source: Cui et al. 2019, as the
/// paper uses it.
///
/// # Panics
/// If there is no class or `imbalance` is outside (0, 1].
pub fn long_tail_counts(n_classes: usize, n_max: usize, imbalance: f64) -> Vec<usize> {
    assert!(n_classes > 0 && imbalance > 0.0 && imbalance <= 1.0, "{n_classes} classes, imbalance {imbalance}");
    let steps = (n_classes - 1).max(1) as f64;
    (0..n_classes).map(|i| truncated(n_max as f64 * imbalance.powf(i as f64 / steps))).collect()
}

/// Images per class of a Pareto long tail with exponent `alpha` from `n_max` down to `n_min`.
///
/// Class i of C has the quantile `u = 1 − (i + ½)/C` of a Pareto (Lomax) distribution, `x = (1 − u)^(−1/α) − 1`, and
/// `max(n_min, int(n_max · x_i / x_0))` images. Liu et al. 2019 cut ImageNet-LT from ImageNet by such a distribution with α = 6,
/// 1280 down to 5 images; theirs is drawn at random and has 115,846 images, this has no chance in it and is of the same shape.
///
/// # Panics
/// If there is no class, `alpha` is not above 0 or `n_min` above `n_max`.
pub fn pareto_counts(n_classes: usize, n_max: usize, n_min: usize, alpha: f64) -> Vec<usize> {
    assert!(n_classes > 0 && alpha > 0.0 && n_min <= n_max, "{n_classes} classes, alpha {alpha}, {n_min} to {n_max}");
    let x = |i: usize| ((i as f64 + 0.5) / n_classes as f64).powf(-1.0 / alpha) - 1.0;
    (0..n_classes).map(|i| truncated(n_max as f64 * x(i) / x(0)).max(n_min)).collect()
}

/// Images per class of a step: `share_of_few` of the classes (rounded) have `int(n_max * imbalance)` images, the others `n_max`.
///
/// Source: Buda et al. 2018, step imbalance.
///
/// # Panics
/// If there is no class, or `imbalance` or `share_of_few` is outside (0, 1].
pub fn step_counts(n_classes: usize, n_max: usize, imbalance: f64, share_of_few: f64) -> Vec<usize> {
    let is_share = |value: f64| value > 0.0 && value <= 1.0;
    assert!(n_classes > 0 && is_share(imbalance) && is_share(share_of_few), "{imbalance} and {share_of_few}");
    let n_few = (n_classes as f64 * share_of_few).round() as usize;
    let few = truncated(n_max as f64 * imbalance);
    (0..n_classes).map(|i| if i < n_classes - n_few { n_max } else { few }).collect()
}

/// The whole part. Powers differ in the last bit between machines; that must not turn 10 into 9.
fn truncated(exact: f64) -> usize {
    if (exact - exact.round()).abs() < 1e-9 * exact { exact.round() as usize } else { exact as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_counts_are_the_papers() {
        let cifar10 = long_tail_counts(10, 4500, 0.01);
        assert_eq!(cifar10, [4500, 2697, 1617, 969, 581, 348, 208, 125, 75, 45]);
        assert_eq!(cifar10.iter().sum::<usize>(), 11_165);
        let cifar100 = long_tail_counts(100, 450, 0.01);
        assert_eq!((cifar100[0], cifar100[99], cifar100.iter().sum::<usize>()), (450, 4, 9_754));
        assert_eq!(long_tail_counts(1, 7, 0.01), [7]);
        assert_eq!(long_tail_counts(3, 1000, 0.01), [1000, 100, 10]);
        let imagenet = long_tail_counts(1000, 1280, 1.0 / 256.0);
        assert_eq!((imagenet[0], imagenet[999]), (1280, 5));
        assert_eq!(long_tail_counts(10, 5400, 0.01), [5400, 3237, 1940, 1163, 697, 418, 250, 150, 90, 54]);
    }

    #[test]
    fn pareto_counts_fall_from_the_largest_to_the_smallest_and_are_about_as_many_as_imagenet_lts() {
        let counts = pareto_counts(1000, 1280, 5, 6.0);
        assert_eq!((counts[0], counts[999]), (1280, 5));
        assert!(counts.is_sorted_by(|a, b| a >= b));
        let n_images: usize = counts.iter().sum();
        assert!((95_000..120_000).contains(&n_images), "{n_images}");
        // By hand for two classes and α = 1: u = ¾ and ¼, x = 3 and 1/3, so the second has a ninth.
        assert_eq!(pareto_counts(2, 900, 1, 1.0), [900, 100]);
        assert_eq!(pareto_counts(2, 900, 150, 1.0), [900, 150]);
    }

    #[test]
    fn a_step_has_two_heights() {
        assert_eq!(step_counts(4, 500, 0.1, 0.5), [500, 500, 50, 50]);
        assert_eq!(step_counts(5, 10, 0.25, 0.2), [10, 10, 10, 10, 2]);
        assert_eq!(step_counts(2, 10, 1.0, 1.0), [10, 10]);
    }
}
