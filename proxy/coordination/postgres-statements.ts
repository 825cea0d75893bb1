/**
 * `cache_leases` is unlogged: no WAL, no fsync, and a server that crashed or was promoted has it empty, with the row of
 * its birth (holder '') gone like everything else in it. `role_leases` is durable.
 */
const nowMs = `(extract(epoch from clock_timestamp()) * 1000)::float8 as now_ms`
const ms = (parameter: string): string => `${parameter}::float8 * interval '1 ms'`
const leaseColumns = `
  holder, instance, revoked,
  (extract(epoch from expires_at - clock_timestamp()) * 1000)::float8 as left_ms,
  (extract(epoch from clock_timestamp() - registered_at) * 1000)::float8 as age_ms`
const others = `(
  select count(*)::int from cache_leases
  where holder not in ('', $1) and expires_at > clock_timestamp()) as others,
  coalesce((
    select extract(epoch from clock_timestamp() - registered_at) * 1000 from cache_leases where holder = ''
  ), 0)::float8 as age_ms`
const durable = `set_config('synchronous_commit', 'on', true)`

export const statements = {
  /** worker, instance, ttl, member. No row: refused. */
  renew: {
    name: 'lease-renew',
    text: `
      update cache_leases set expires_at = clock_timestamp() + ${ms('$3')}, member = $4
      where holder = $1 and instance = $2 and not revoked and expires_at > clock_timestamp()
      returning ${nowMs}, ${others}`,
  },
  /** worker, instance, ttl, member, channel, messages: the former instance (%s) is gone; somebody joined. */
  register: {
    name: 'lease-register',
    text: `
      with space as (
        insert into cache_leases (holder, instance, registered_at, expires_at)
        values ('', '', clock_timestamp(), 'infinity') on conflict do nothing),
      dead as (
        delete from cache_leases where expires_at < clock_timestamp() - interval '1 minute' and holder <> $1),
      gone as (
        select count(pg_notify($5, replace($6, '%s', instance))) from cache_leases
        where holder = $1 and instance <> $2),
      put as (
        insert into cache_leases (holder, instance, registered_at, expires_at, member)
        values ($1, $2, clock_timestamp(), clock_timestamp() + ${ms('$3')}, $4)
        on conflict (holder) do update set
          instance = excluded.instance, revoked = false, member = excluded.member,
          registered_at = excluded.registered_at, expires_at = clock_timestamp() + ${ms('$3')}
        returning 1)
      select ${nowMs}, ${others}, (select * from put), (select * from gone), pg_notify($5, $7)`,
  },
  /** worker, channel, messages. Sends nothing, and so writes nothing, when nobody else is there. */
  announce: {
    name: 'lease-announce',
    text: `
      with seen as materialized (select ${leaseColumns} from cache_leases),
      told as materialized (
        select count(pg_notify($2, message)) as sent from unnest($3::text[]) message
        where exists (select from seen where holder not in ('', $1) and left_ms > 0 and not revoked))
      select ${nowMs}, (select sent from told), seen.* from seen`,
  },
  /** worker, instance. Answers with the birth row too; the lease's own row only if it was this instance's. */
  revoke: {
    name: 'lease-revoke',
    text: `
      with done as (
        update cache_leases set revoked = true where holder = $1 and instance = $2 returning ${leaseColumns})
      select ${nowMs}, done.* from done
      union all select ${nowMs}, ${leaseColumns} from cache_leases where holder = ''`,
  },
  /** worker, instance, channel, message. */
  release: {
    name: 'lease-release',
    text: `
      with done as (delete from cache_leases where holder = $1 and instance = $2 returning 1)
      select ${nowMs}, pg_notify($3, $4) from done`,
  },
  /** channels, messages. */
  notify: {
    name: 'lease-notify',
    text: 'select count(pg_notify(channel, message)) from unnest($1::text[], $2::text[]) as one (channel, message)',
  },
  members: {
    name: 'lease-members',
    text: `select ${nowMs}, member from cache_leases where expires_at > clock_timestamp()`,
  },
  /** role, nonce, ttl, worker. */
  takeRole: {
    name: 'role-take',
    text: `
      insert into role_leases as held (role, nonce, holder, expires_at)
      values ($1, $2, $4, clock_timestamp() + ${ms('$3')})
      on conflict (role) do update set
        nonce = excluded.nonce, holder = excluded.holder, expires_at = clock_timestamp() + ${ms('$3')}
        where held.expires_at <= clock_timestamp()
      returning ${nowMs}, ${durable}`,
  },
  /** role, nonce, ttl. */
  renewRole: {
    name: 'role-renew',
    text: `
      update role_leases set expires_at = clock_timestamp() + ${ms('$3')}
      where role = $1 and nonce = $2 and expires_at > clock_timestamp()
      returning ${nowMs}, ${durable}`,
  },
  /** role, nonce. */
  freeRole: { name: 'role-free', text: 'delete from role_leases where role = $1 and nonce = $2' },
  roleHolder: {
    name: 'role-holder',
    text: 'select holder from role_leases where role = $1 and expires_at > clock_timestamp()',
  },
} as const
