//! Nearest neighbours: each test image is classified by its most similar training images.
//!
//! Source: Wu et al. 2018 (instance discrimination), as self-supervised evaluation uses it: cosine similarity s, the k
//! nearest vote with weight exp(s / 0.07).

use super::features::{Extractor, Features};
use super::{Halt, LEARN, ProbeJob, TEST, Verdict};
use sdclr_engine::{Dims, Engine, Role, Span};

/// Wu et al.'s temperature of the votes.
const VOTE_TEMPERATURE: f32 = 0.07;
/// Training and test rows that are compared at a time.
const TRAIN_BLOCK: usize = 8192;
const TEST_BLOCK: usize = 256;

/// Classifies the test images by votes.
pub(super) fn vote(job: &mut ProbeJob, extractor: &mut Extractor, n_classes: usize) -> Result<Verdict, Halt> {
    let recipe = &job.probe.augment_test;
    let mut train = extractor.all(&job.train, LEARN, recipe, job.stop, job.observer)?;
    let mut test = extractor.all(&job.test, TEST, recipe, job.stop, job.observer)?;
    normalise(&mut train);
    normalise(&mut test);
    let neighbours = nearest(&mut *extractor.engine, &train, &test, job.probe.neighbours, job)?;
    let predictions = neighbours
        .iter()
        .map(|found| {
            let mut votes = vec![0.0f32; n_classes];
            for &(similarity, row) in found {
                votes[train.labels[row] as usize] += (similarity / VOTE_TEMPERATURE).exp();
            }
            votes.iter().enumerate().fold(0, |best, (i, v)| if *v > votes[best] { i } else { best })
        })
        .collect();
    let labels = test.labels.iter().map(|&label| label as usize).collect();
    let n_skipped = job.train.len() - train.len() + job.test.len() - test.len();
    let n_train = train.len();
    Ok(Verdict { labels, predictions, n_top5: None, n_train, n_skipped, best_epoch: None, classifier: None })
}

fn normalise(features: &mut Features) {
    for row in features.values.chunks_exact_mut(features.width) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        row.iter_mut().for_each(|v| *v /= norm);
    }
}

/// For each test row its `k` most similar training rows, most similar first; similarities by the engine's matrix product.
fn nearest(
    engine: &mut dyn Engine,
    train: &Features,
    test: &Features,
    k: usize,
    job: &ProbeJob,
) -> Result<Vec<Vec<(f32, usize)>>, Halt> {
    let width = train.width;
    let block = TRAIN_BLOCK.min(train.len());
    let buf = engine.alloc_f32(block * width)?;
    let weights = engine.whole(buf);
    let x = engine.alloc_act(TEST_BLOCK, Dims { h: 1, w: 1, c: width }, Role::Vector)?;
    let mut found: Vec<Vec<(f32, usize)>> = vec![Vec::new(); test.len()];
    let mut y = engine.alloc_act(TEST_BLOCK, Dims { h: 1, w: 1, c: block }, Role::Vector)?;
    for (i, rows) in train.values.chunks(block * width).enumerate() {
        let n_rows = rows.len() / width;
        if n_rows < block {
            y = engine.alloc_act(TEST_BLOCK, Dims { h: 1, w: 1, c: n_rows }, Role::Vector)?;
        }
        let part: Span = weights.slice(0..rows.len());
        engine.write_f32(part, rows);
        let mut similarities = vec![0.0; TEST_BLOCK * n_rows];
        for (j, queries) in test.values.chunks(TEST_BLOCK * width).enumerate() {
            if let Some(signal) = job.stop.raised() {
                return Err(Halt::Stopped(signal));
            }
            let n = queries.len() / width;
            engine.write_act(n, x, queries);
            engine.linear_forward(n, x, part, None, y, None);
            engine.read_act(n, y, &mut similarities[..n * n_rows])?;
            for (q, row) in similarities[..n * n_rows].chunks_exact(n_rows).enumerate() {
                merge(&mut found[j * TEST_BLOCK + q], row, i * block, k);
            }
        }
    }
    Ok(found)
}

/// Merges similarities to training rows `first..` into a list of the `k` best.
fn merge(found: &mut Vec<(f32, usize)>, similarities: &[f32], first: usize, k: usize) {
    for (i, &similarity) in similarities.iter().enumerate() {
        if found.len() == k && found.last().is_some_and(|(worst, _)| similarity <= *worst) {
            continue;
        }
        let at = found.partition_point(|(other, _)| *other >= similarity);
        found.insert(at, (similarity, first + i));
        found.truncate(k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_the_best_in_order_over_blocks() {
        let mut found = Vec::new();
        merge(&mut found, &[0.1, 0.9, 0.5], 0, 2);
        merge(&mut found, &[0.7, 0.9], 3, 2);
        assert_eq!(found, [(0.9, 1), (0.9, 4)]);
    }
}
