//! What happens at the beginning of an epoch: schedules, the mask, and the loader's start; and the line that tells of it at its end.

use super::Run;
use crate::backend;
use crate::error::Error;
use crate::progress::StepReport;
use sdclr_nn::TemperatureSchedule;
use sdclr_records::RunConfig;
use sdclr_records::metrics::EpochMetrics;

impl Run<'_> {
    /// Begins the next epoch, or goes on in the middle of it.
    pub(super) fn begin_epoch(&mut self) -> Result<(), Error> {
        let (config, epoch, batch) = (self.config, self.at.epoch as u64, self.at.batch);
        // Papers count epochs from 1.
        let number = epoch + 1;
        self.learner.set_temperature(backend::temperature_schedule(config).temperature_at(number) as f32);
        if batch == 0 {
            (self.at.epoch_loss, self.at.epoch_steps) = (0.0, 0);
            if config.has_pruned_branch() {
                let (rate, random_rate) = backend::prune_schedule(config).rates_at(number);
                self.mask = Some(self.learner.update_mask(rate, random_rate, config.seed, epoch)?);
            }
            self.boost.iter_mut().for_each(|boost| boost.begin_epoch());
        }
        match &self.boost {
            Some(boost) => self.loader.start_boosted_epoch(epoch, batch, boost.augmentation()),
            None => self.loader.start_epoch(epoch, batch),
        }
        Ok(())
    }

    /// The line of the epoch that has ended.
    pub(super) fn epoch_metrics(&self, report: &StepReport) -> EpochMetrics {
        let (config, epoch) = (self.config, self.at.epoch);
        EpochMetrics {
            epoch,
            step: report.step,
            loss: report.loss,
            lr: report.lr,
            images_per_s: report.images_per_s,
            wait_share: report.wait_share,
            elapsed_s: self.elapsed_s(),
            n_skipped: self.writer.n_skipped(),
            temperature: scheduled_temperature(config, epoch),
            mask_threshold: self.mask.map(|mask| f64::from(mask.threshold)),
            mask_kept_share: self.mask.map(|mask| mask.n_kept as f64 / mask.n_weights as f64),
        }
    }
}

/// The temperature of an epoch, from 1, if it is one that moves.
fn scheduled_temperature(config: &RunConfig, epoch: usize) -> Option<f64> {
    let schedule = backend::temperature_schedule(config);
    (!matches!(schedule, TemperatureSchedule::Constant(_))).then(|| schedule.temperature_at(epoch as u64))
}
