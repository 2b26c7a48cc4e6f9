"""An action that makes the statistics of these five minutes at once, instead of when they are over.

`later` is how many times five minutes are made beforehand, as if nothing changed until then.
"""

from datetime import timedelta

from homeassistant.components.recorder import get_instance
from homeassistant.components.recorder.tasks import StatisticsTask
from homeassistant.core import HomeAssistant, ServiceCall
from homeassistant.helpers.typing import ConfigType
from homeassistant.util import dt


async def async_setup(hass: HomeAssistant, _config: ConfigType) -> bool:
    async def now(call: ServiceCall) -> None:
        time = dt.utcnow()
        start = time.replace(minute=time.minute // 5 * 5, second=0, microsecond=0)
        recorder = get_instance(hass)
        await recorder.async_block_till_done()
        for number in range(-1, call.data.get("later", 0) + 1):  # they may have begun a moment ago
            period = start + number * timedelta(minutes=5)
            recorder.queue_task(StatisticsTask(period, fire_events=False))
        await recorder.async_block_till_done()

    hass.services.async_register("compile_statistics", "now", now)
    return True
