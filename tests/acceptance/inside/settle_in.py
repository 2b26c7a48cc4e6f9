"""Gives a new configuration folder an owner who has been through all welcome pages; prints the owner's token."""

import asyncio
import json
import sys
from datetime import timedelta
from pathlib import Path

from homeassistant import auth, bootstrap, config_entries, loader
from homeassistant.auth.models import TOKEN_TYPE_LONG_LIVED_ACCESS_TOKEN
from homeassistant.core import HomeAssistant

WELCOMED = {
    "version": 4,
    "minor_version": 1,
    "key": "onboarding",
    "data": {"done": ["user", "core_config", "analytics", "integration"]},
}


async def main(folder: Path) -> None:
    hass = HomeAssistant(str(folder))
    loader.async_setup(hass)
    hass.config_entries = config_entries.ConfigEntries(hass, {})
    await bootstrap.async_load_base_functionality(hass)
    manager = await auth.auth_manager_from_config(hass, [{"type": "homeassistant"}], [])
    owner = await manager.async_create_user("owner", group_ids=["system-admin"])
    refresh = await manager.async_create_refresh_token(
        owner,
        client_name="tests",
        token_type=TOKEN_TYPE_LONG_LIVED_ACCESS_TOKEN,
        access_token_expiration=timedelta(days=1),
    )
    print(manager.async_create_access_token(refresh))  # noqa: T201 - that is what it is for
    kept = manager._store
    await kept._store.async_save(kept._data_to_save())
    await hass.async_stop(force=True)
    (folder / ".storage" / "onboarding").write_text(json.dumps(WELCOMED))


asyncio.run(main(Path(sys.argv[1])))
