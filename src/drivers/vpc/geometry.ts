/** Cylinders, heads, sectors a track: what an old BIOS addresses a disk by. */
export interface Geometry {
  readonly cylinders: number;
  readonly heads: number;
  readonly sectors: number;
}

/** The largest that a footer has; the size counts then. */
export const LARGEST: Geometry = { cylinders: 65535, heads: 16, sectors: 255 };

export function sectorsOf({ cylinders, heads, sectors }: Geometry): number {
  return cylinders * heads * sectors;
}

/** The geometry of a disk of so many sectors, which has no more than them (VHD specification 1.0, appendix). */
export function geometryOf(totalSectors: number): Geometry {
  if (totalSectors >= sectorsOf(LARGEST)) return LARGEST;
  const of = (sectors: number, heads: number): Geometry => ({
    cylinders: Math.floor(Math.floor(totalSectors / sectors) / heads),
    heads,
    sectors,
  });
  if (totalSectors > 65535 * 16 * 63) return of(255, 16);
  const tracks = Math.floor(totalSectors / 17);
  const heads = Math.max(4, Math.ceil(tracks / 1024));
  if (tracks < heads * 1024 && heads <= 16) return of(17, heads);
  if (Math.floor(totalSectors / 31) < 16 * 1024) return of(31, 16);
  return of(63, 16);
}

/** The smallest geometry that has room for so many sectors. */
export function geometryFor(totalSectors: number): Geometry {
  for (let more = 0; ; more++) {
    const geometry = geometryOf(totalSectors + more);
    if (geometry === LARGEST || sectorsOf(geometry) >= totalSectors) return geometry;
  }
}
