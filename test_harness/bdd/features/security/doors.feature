Feature: Doors
  Nothing but the health of the service is open, and a door that stays closed says what kind of key
  it wants.

  Background:
    Given a service whose model is called "assistant"

  @ORCH-3035 @OC-CTRL-2040
  Scenario: Without a key there is nothing to see
    When nobody asks for /v1/capabilities
    Then the answer is 401 with
      | code      | ADMISSION_REJECT |
      | retriable | false            |
    When nobody submits to "assistant"
      | task  |
      | psst! |
    Then the answer is 401
    When nobody asks for /livez
    Then the answer is 200

  @ORCH-3035 @OC-CTRL-2040
  Scenario: A wrong key opens nothing
    When a stranger asks for /v1/replicasets
    Then the answer is 403 with
      | code | ADMISSION_REJECT |
    When a stranger submits to "assistant"
      | task    |
      | open up |
    Then the answer is 403
    When a stranger asks for /metrics
    Then the answer is 403
