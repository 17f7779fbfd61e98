//! The state of a transport and its device, as plain data.

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};

use super::MmioTransport;
use crate::{Decoder, Encoder, StateError};

impl MmioTransport {
    /// Returns the registers, the queues and what the device keeps.
    ///
    /// # Errors
    ///
    /// A reset is not complete, the device needs one, or the device refuses.
    pub(super) fn state(&self) -> Result<Vec<u8>, StateError> {
        if self.resetting {
            return Err(StateError::Busy("a device is being reset"));
        }
        if self.interrupt.is_broken() {
            return Err(StateError::Busy("a device needs a reset"));
        }
        let mut state = Encoder::default();
        state.u32(self.info.device_id).u64(self.info.features).u64(self.driver_features);
        state.u32(self.status).u32(self.queue_select);
        state.u32(self.device_features_select).u32(self.driver_features_select);
        self.interrupt.registers().iter().for_each(|register| _ = state.u32(*register));
        state.u32(self.queues.len() as u32);
        let save = self.queues.iter().map(|queue| queue.save(&self.memory, &mut state));
        let served = save.collect::<Result<Vec<bool>, _>>()?;
        let own = if self.is_started() { self.device.save(&served)? } else { Vec::new() };
        state.bytes(&own);
        Ok(state.finish())
    }

    /// Continues from `state`, and starts the device if it was started. Its queues are kicked: a kick that the saved
    /// machine did not see yet is not in its state.
    pub(super) fn resume(&mut self, state: &[u8]) -> Result<(), StateError> {
        let mut state = Decoder::new(state);
        if state.u32()? != self.info.device_id || state.u64()? != self.info.features {
            return Err(StateError::Foreign("another type or other features"));
        }
        self.driver_features = state.u64()?;
        (self.status, self.queue_select) = (state.u32()?, state.u32()?);
        (self.device_features_select, self.driver_features_select) = (state.u32()?, state.u32()?);
        let registers = [state.u32()?, state.u32()?];
        if state.u32()? as usize != self.queues.len() {
            return Err(StateError::Foreign("another number of queues"));
        }
        let MmioTransport { queues, memory, .. } = self;
        queues.iter_mut().try_for_each(|queue| queue.restore(&mut state, memory))?;
        let own = state.bytes()?;
        state.end()?;
        if self.status & VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
            return Err(StateError::Damaged("a device that needs a reset"));
        }
        self.interrupt.resume(registers);
        if self.is_started() {
            self.device.restore(own)?;
            self.device.show(&self.page);
            self.activate();
            if self.interrupt.is_broken() {
                return Err(StateError::Busy("the device did not start"));
            }
            for kick in &self.kicks {
                // If the counter is full, a kick is already pending.
                let _ = kick.write(1);
            }
        }
        self.answer();
        Ok(())
    }

    fn is_started(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0
    }
}
