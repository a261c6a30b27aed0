//! Writes the gradients of one step in f32 and in bf16, from the same weights on the same batch, at several moments of a training
//! run in f32: what `benches/peers/gradients_torch.py` reads to set PyTorch's beside them.
//!
//! bf16_gradients IMAGES OUT simclr|sdclr BATCH STEP...

use safetensors::tensor::{Dtype, TensorView, serialize};
use sdclr::{Learner, LearnerSpec, backend};
use sdclr_data::{Dataset, Loader, LoaderSpec, OpenOptions, Order, Shard};
use sdclr_engine::{CpuOptions, Engine, bf16_engine, f32_engine};
use sdclr_nn::{Model, Single, Tensor};
use sdclr_records::RunConfig;
use sdclr_records::layers::{Layer, resolve};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

/// Side of the demo preset's views.
const SIZE: usize = 32;

type Tensors = BTreeMap<String, Tensor>;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [images, out, method, batch, moments @ ..] = args.as_slice() else {
        return Err("arguments: IMAGES OUT simclr|sdclr BATCH STEP...".into());
    };
    let flags = [("method", method), ("data", images), ("batch-size", batch)];
    let flags: Vec<(String, String)> = flags.map(|(name, value)| (name.to_owned(), value.clone())).to_vec();
    let recipe = ["augment.area_min=0.1", "prune.rate=0.9", "train.epochs=12"].map(str::to_owned);
    let recipe = Layer::from_assignments(&recipe)?;
    let config: RunConfig = resolve(&[Layer::preset("demo")?, Layer::from_flags(&flags)?, recipe])?;
    let moments: Vec<u64> = moments.iter().map(|step| step.parse()).collect::<Result<_, _>>()?;

    let options = CpuOptions::threads(2);
    let mut trained = learner(f32_engine(options)?, &config)?;
    let mut exact = learner(f32_engine(options)?, &config)?;
    let mut rounded = learner(bf16_engine(options)?, &config)?;
    trained.model.init(&mut *trained.engine, config.seed);
    let dataset = Dataset::open(Path::new(images), &OpenOptions::default())?;
    let n_batches = dataset.len() / config.train.batch_size;
    let schedule = backend::schedule(&config, n_batches as u64);
    let mut loader = Loader::new(dataset, loader_spec(&config))?;
    for step in 0..=moments.iter().copied().max().unwrap_or(0) {
        if step.is_multiple_of(n_batches as u64) {
            let epoch = step / n_batches as u64;
            loader.start_epoch(epoch, 0);
            trained.update_mask(config.prune.rate, 0.0, config.seed, epoch)?;
        }
        let views = loader.next_batch().ok_or("no batch")??.views;
        if moments.contains(&step) {
            let mut tensors = weights(&mut trained)?;
            for (l, prefix) in [(&mut exact, "f32."), (&mut rounded, "bf16.")] {
                copy(&mut trained, l)?;
                tensors.extend(gradients(l, &views, prefix)?);
            }
            let path = Path::new(out).join(format!("{method}-{batch}-{step}.safetensors"));
            write(&path, &tensors, &trained.model, &views)?;
        }
        trained.step(&views, n_images(&views), schedule.lr_at(step + 1))?;
    }
    Ok(())
}

fn learner(engine: Box<dyn Engine>, config: &RunConfig) -> Result<Learner, Box<dyn Error>> {
    let spec = LearnerSpec {
        method: config.method,
        max_batch: config.train.batch_size,
        temperature: config.train.temperature as f32,
        optimizer: backend::optimizer(&config.optimizer),
    };
    Ok(Learner::new(engine, Box::new(Single), backend::run_network(config)?, &spec)?)
}

fn loader_spec(config: &RunConfig) -> LoaderSpec {
    LoaderSpec {
        recipe: sdclr_records::augment::Augmentation::Contrastive(config.augment.clone()),
        image_size: SIZE as u32,
        n_views: 2,
        batch_size: config.train.batch_size,
        order: Order::Shuffled,
        seed: config.seed,
        workers: 1,
        jpeg_scaling: false,
        cache_bytes: LoaderSpec::CACHE_BYTES,
        shard: Shard::default(),
        max_broken_share: 0.0,
        strict: true,
    }
}

fn weights(l: &mut Learner) -> Result<Tensors, Box<dyn Error>> {
    Ok(l.model.export(&mut *l.engine, l.model.params())?)
}

/// Weights and masks; running statistics play no part in a training step.
fn copy(from: &mut Learner, to: &mut Learner) -> Result<(), Box<dyn Error>> {
    let weights = weights(from)?;
    to.model.import(&mut *to.engine, to.model.params(), &weights)?;
    to.model.set_masks(&mut *to.engine, &from.model.masks())?;
    Ok(())
}

/// The gradients of a step that moves nothing.
fn gradients(l: &mut Learner, views: &[u8], prefix: &str) -> Result<Tensors, Box<dyn Error>> {
    l.step(views, n_images(views), 0.0)?;
    let named = |(name, tensor)| (format!("{prefix}{name}"), tensor);
    Ok(l.model.export(&mut *l.engine, l.model.grads())?.into_iter().map(named).collect())
}

fn n_images(views: &[u8]) -> usize {
    views.len() / (2 * 3 * SIZE * SIZE)
}

fn write(path: &Path, tensors: &Tensors, model: &Model, views: &[u8]) -> Result<(), Box<dyn Error>> {
    let bytes: Vec<_> =
        tensors.iter().map(|(name, t)| (name, &t.shape, bytemuck::cast_slice::<f32, u8>(&t.data))).collect();
    let masks = model.masks();
    let mut entries: Vec<(String, TensorView<'_>)> = Vec::new();
    for (name, shape, bytes) in bytes {
        entries.push((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes)?));
    }
    for (name, (shape, bytes)) in &masks {
        entries.push((format!("mask.{name}"), TensorView::new(Dtype::U8, shape.clone(), bytes)?));
    }
    entries.push(("views".to_owned(), TensorView::new(Dtype::U8, vec![views.len()], views)?));
    Ok(std::fs::write(path, serialize(entries, None)?)?)
}
