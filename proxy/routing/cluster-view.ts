import { type ClusterMap, PlacementView } from '../../shared/cluster-map.ts'

/** The newest cluster map this worker knows. Reading it is free; only a newer epoch replaces it. */
export class ClusterView {
  #current: PlacementView
  readonly #listeners = new Set<(view: PlacementView) => void>()

  constructor(map: ClusterMap) {
    this.#current = new PlacementView(map)
  }

  /** Lookups in the newest map. Hold it for one request, not longer. */
  current(): PlacementView {
    return this.#current
  }

  /** Takes a newer map and tells the listeners, in order of registration; false when the epoch is not newer. */
  replace(map: ClusterMap): boolean {
    if (map.epoch <= this.#current.map.epoch) return false
    this.#current = new PlacementView(map)
    for (const listener of this.#listeners) listener(this.#current)
    return true
  }

  /** Calls `listener` with each newer map; the returned function ends that. */
  onReplace(listener: (view: PlacementView) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }
}
