//! What happens at the beginning of an epoch: schedules, the mask, and the loader's start.

use super::Run;
use crate::backend;
use crate::error::Error;
use sdclr_nn::TemperatureSchedule;
use sdclr_records::RunConfig;

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
}

/// The temperature of an epoch, from 1, if it is one that moves.
pub(super) fn scheduled_temperature(config: &RunConfig, epoch: usize) -> Option<f64> {
    let schedule = backend::temperature_schedule(config);
    (!matches!(schedule, TemperatureSchedule::Constant(_))).then(|| schedule.temperature_at(epoch as u64))
}
