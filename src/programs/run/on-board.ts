import { BlockError } from '../../base/error.js';
import type { Drive } from '../../attach/drive.js';
import { addDevice } from '../../monitor/devices.js';
import type { Engine } from '../../monitor/engine.js';
import { withContext } from './options.js';

/** A drive, and the option that asked for it. */
export interface Placed {
  drive: Drive;
  text: string;
}

/** Disks of drives that sit on the machine's own controllers. Errors: invalid where it has none of the kind. */
export async function addOnBoardDisks(engine: Engine, drives: readonly Placed[]): Promise<void> {
  const placed = [...drives].sort((a, b) => order(a.drive) - order(b.drive));
  for (const { drive, text } of placed) {
    const { interface: kind, bus, unit, isCdrom } = drive.properties;
    if (kind === 'none' || kind === 'virtio') continue;
    await inOption(text, async () => {
      const places = engine.machine.placesOf(kind);
      if (!places || bus >= places.buses || unit >= places.units)
        throw new BlockError(
          'unsupported',
          `machine type does not support if=${kind},bus=${bus},unit=${unit}`,
        );
      const driver = kind === 'floppy' ? 'floppy' : isCdrom ? 'ide-cd' : 'ide-hd';
      if (kind === 'pflash') return;
      const on = kind === 'ide' ? { bus: `ide.${bus}` } : {};
      await addDevice(
        engine,
        { driver, drive: drive.id, ...on },
        { mode: 'keyval', hot: false, isOnBoard: true },
      );
    });
  }
}

function order({ properties: { bus, unit } }: Drive): number {
  return bus * 100 + unit;
}

/** if=virtio stands for a device of its own, which comes after those that were asked for. */
export async function addVirtioDisks(engine: Engine, drives: readonly Placed[]): Promise<void> {
  for (const { drive, text } of drives) {
    if (drive.properties.interface !== 'virtio') continue;
    const options = { driver: 'virtio-blk', drive: drive.id };
    await inOption(text, () => addDevice(engine, options, { mode: 'keyval', hot: false }));
  }
}

async function inOption(text: string, body: () => Promise<void>): Promise<void> {
  try {
    await body();
  } catch (error) {
    throw withContext(text, error);
  }
}
