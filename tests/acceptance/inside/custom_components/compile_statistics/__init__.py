"""An action that makes the statistics of these five minutes at once, instead of when they are over."""

from datetime import timedelta

from homeassistant.components.recorder import get_instance
from homeassistant.components.recorder.tasks import StatisticsTask
from homeassistant.core import HomeAssistant, ServiceCall
from homeassistant.helpers.typing import ConfigType
from homeassistant.util import dt


async def async_setup(hass: HomeAssistant, _config: ConfigType) -> bool:
    async def now(_call: ServiceCall) -> None:
        time = dt.utcnow()
        start = time.replace(minute=time.minute // 5 * 5, second=0, microsecond=0)
        recorder = get_instance(hass)
        await recorder.async_block_till_done()
        for period in (start - timedelta(minutes=5), start):  # they may have begun a moment ago
            recorder.queue_task(StatisticsTask(period, fire_events=False))
        await recorder.async_block_till_done()

    hass.services.async_register("compile_statistics", "now", now)
    return True
