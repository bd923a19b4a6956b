Feature: On call
  Somebody is woken up by an alert and wants to know whether the service lives, what it does, and
  what became of one request.

  Background:
    Given a service whose model is called "assistant"

  @OC-CTRL-2052
  Scenario: A request is found again by the name that its client gave it
    Given acme calls this errand "order-4711"
    When acme asks for /v1/capabilities
    Then the answer carries
      | X-Correlation-Id | order-4711 |
    When acme submits to "assistant"
      | task            | max_tokens |
      | Your parcel is  | 4          |
    Then the answer to "Your parcel is" carries
      | X-Correlation-Id | order-4711 |
    And "Your parcel is" ends well
    When acme asks for /v1/tasks/00000000-0000-4000-8000-000000000000/stream
    Then the answer is 404
    And the answer carries
      | X-Correlation-Id | order-4711 |

  @OC-CTRL-2051
  Scenario: The metrics move with the work
    Given the scraper has read the metrics
    When acme submits to "assistant"
      | task           | priority    | max_tokens |
      | quick question | interactive | 4          |
      | long report    | batch       | 4          |
    Then "quick question" and "long report" end well
    And since then have grown
      | tasks_enqueued_total                        | 2 |
      | tasks_started_total                         | 2 |
      | tasks_started_total{priority=batch}         | 1 |
      | tokens_out_total                            | 2 |
      | latency_first_token_ms_count                | 2 |

  @ORCH-2104 @OC-CTRL-2004
  Scenario: Is it up, and is there room?
    When nobody asks for /livez
    Then the answer is 200
    When nobody asks for /readyz
    Then the answer is 200
    When the operator asks for /v1/replicasets
    Then the answer is 200 with
      | 0.engine           | something |
      | 0.slots_total      | something |
      | 0.replicas.0.state | Ready     |
