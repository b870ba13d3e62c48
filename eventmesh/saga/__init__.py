"""Sagas: workflows across services, written as data.

`authoring` is what the author of a service uses, `definition` holds a checked saga, `transition`
decides what happens next, and `coordinator` runs that decision in a transaction.
"""
